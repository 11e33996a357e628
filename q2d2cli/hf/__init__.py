"""The codec as a model of `transformers` (extra `transformers`), as EnCodec, DAC and Mimi are there.

Importing this registers it with the auto classes:

>>> import q2d2cli.hf
>>> from transformers import AutoFeatureExtractor, AutoModel
>>> model = AutoModel.from_pretrained("folder")  # of `Q2D2Model.save_pretrained`
>>> extractor = AutoFeatureExtractor.from_pretrained("folder")
>>> inputs = extractor(audio, sampling_rate=24_000, return_tensors="pt")
>>> codes = model.encode(inputs["input_values"], inputs["padding_mask"]).audio_codes
>>> audio = model.decode(codes).audio_values

`Q2D2Model.from_pretrained` also takes what `Codec.from_pretrained` does: a shipped model's name, its folder, a Hub id.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from q2d2cli.hf.configuration import Q2D2Config
from q2d2cli.hf.feature_extraction import Q2D2FeatureExtractor
from q2d2cli.hf.modeling import Q2D2Model

AutoConfig.register(Q2D2Config.model_type, Q2D2Config, exist_ok=True)
AutoModel.register(Q2D2Config, Q2D2Model, exist_ok=True)
AutoFeatureExtractor.register(Q2D2Config, Q2D2FeatureExtractor, exist_ok=True)

__all__ = ["Q2D2Config", "Q2D2FeatureExtractor", "Q2D2Model"]
