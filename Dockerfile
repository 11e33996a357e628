# q2d2 with its models on the CPU, run by a user who is not root.
#
#   docker build -t q2d2 .
#   docker run --rm -v "$PWD:/audio" --user "$(id -u):$(id -g)" q2d2 encode talk.wav
#
# With the demo page: docker build --build-arg EXTRAS=[demo] -t q2d2-demo .
#   docker run --rm -p 7860:7860 q2d2-demo demo --host 0.0.0.0

FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=""
RUN python -m venv /opt/q2d2
# The CPU build first: the one with CUDA is several times as large.
RUN /opt/q2d2/bin/pip install --no-cache-dir "torch>=2.9,<2.12" --index-url https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY q2d2cli q2d2cli
COPY checkpoints checkpoints
RUN /opt/q2d2/bin/pip install --no-cache-dir ".${EXTRAS}"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/q2d2 /opt/q2d2
RUN useradd --create-home --uid 1000 q2d2 && mkdir /audio && chown q2d2 /audio
ENV PATH=/opt/q2d2/bin:$PATH PYTHONUNBUFFERED=1
USER q2d2
WORKDIR /audio
ENTRYPOINT ["q2d2"]
CMD ["--help"]
