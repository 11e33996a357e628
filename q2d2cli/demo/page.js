// Players that keep one place, and the path over the grids that follows what is heard. One listener each on the document,
// since the page puts a new result in the place of the old one.
(() => {
  if (window.q2demo) return;
  window.q2demo = true;
  let which = "decoded", drawn = null, facts = null;
  const all = selector => [...document.querySelectorAll(".q2-result " + selector)];
  const audio = name => document.querySelector(`.q2-card[data-which="${name}"] audio`);
  const current = () => audio(which) || audio("original");

  const draw = () => {
    const player = current();
    if (!player) return;
    const length = player.duration || 1;
    const place = Math.min(1, player.currentTime / length);
    all(".q2-head").forEach(head => { head.style.left = `${100 * place}%`; });
    const section = document.querySelector(".q2-tokens");
    if (!section) return;
    if (drawn !== section) { drawn = section; facts = JSON.parse(section.dataset.facts); }
    const frames = facts.indices[0].length;
    const now = Math.min(frames - 1, Math.floor(player.currentTime * facts.rate));
    all(".q2-grid svg").forEach((svg, pair) => {
      const path = facts.indices[pair].slice(Math.max(0, now - facts.trail), now + 1).map(i => facts.places[pair][i]);
      // The older a step the fainter.
      svg.querySelector(".q2-trail").innerHTML = path.slice(1).map(([x, y], step) =>
        `<line x1="${path[step][0]}" y1="${path[step][1]}" x2="${x}" y2="${y}" opacity="${((step + 1) / path.length) ** 1.5}"/>`
      ).join("");
      const dot = svg.querySelector(".q2-now"), [x, y] = path[path.length - 1];
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
    });
  };
  const mark = () => {
    const player = current();
    if (!player) return;
    const name = player.closest(".q2-card").dataset.which;
    all(".q2-switch button").forEach(button => {
      button.classList.toggle("q2-on", button.dataset.which === name);
      button.setAttribute("aria-pressed", button.dataset.which === name);
    });
    all(".q2-card").forEach(card => card.classList.toggle("q2-on", card.dataset.which === name));
    all(".q2-play").forEach(button => { button.textContent = player.paused ? "▶ Play" : "❚❚ Pause"; });
    draw();
  };
  const follow = () => {
    draw();
    if (current() && !current().paused) requestAnimationFrame(follow);
  };
  const take = name => {
    const before = current();
    which = name;
    const next = current();
    if (before && next && before !== next) {
      const playing = !before.paused;
      next.currentTime = before.currentTime;
      before.pause();
      if (playing) next.play();
    }
    mark();
  };
  const seek = (element, event) => {
    const box = element.getBoundingClientRect();
    const player = current();
    player.currentTime = (event.clientX - box.left) / box.width * (player.duration || 0);
    draw();
  };

  document.addEventListener("click", event => {
    const target = event.target;
    const player = current();
    if (!target.closest || !player) return;
    const choice = target.closest(".q2-switch button"), card = target.closest(".q2-card");
    const surface = target.closest(".q2-spectrogram, .q2-strips");
    if (target.closest(".q2-play")) player.paused ? player.play() : player.pause();
    else if (choice) take(choice.dataset.which);
    else if (surface) {
      if (card) take(card.dataset.which);
      seek(surface, event);
    }
  });
  // These do not bubble: they are caught on their way down.
  document.addEventListener("play", event => {
    const card = event.target.closest(".q2-card");
    if (!card) return;
    if (card.dataset.which !== which || event.target !== current()) {
      const other = current();
      which = card.dataset.which;
      if (other && other !== event.target) other.pause();
    }
    mark();
    follow();
  }, true);
  for (const name of ["pause", "ended", "seeked", "loadedmetadata"]) {
    document.addEventListener(name, event => { if (event.target.closest(".q2-card")) mark(); }, true);
  }
})();
