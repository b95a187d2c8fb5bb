"""A small model with the interface of Qwen-VL's remote code: the text names images, `visual.encode` opens them."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class QWenConfig(LlamaConfig):
    model_type = "qwen"


class VisionTransformer(nn.Module):
    def __init__(self, visual, hidden_size):
        super().__init__()
        self.image_size = visual["image_size"]
        self.patch = nn.Conv2d(3, hidden_size, visual["patch_size"], visual["patch_size"])
        self.mix = nn.Linear(hidden_size, hidden_size)

    def forward(self, x):
        patches = self.patch(x).flatten(2).transpose(1, 2)
        return patches + torch.tanh(self.mix(patches.mean(1, keepdim=True)))

    def encode(self, image_paths):
        images = []
        for path in image_paths:
            image = Image.open(path).convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
            mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
            images.append((np.asarray(image, dtype=np.float32) / 255 - mean) / std)
        pixels = torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2)
        return self(pixels)


class QWenLMHeadModel(LlamaForCausalLM):
    config_class = QWenConfig

    def __init__(self, config):
        super().__init__(config)
        self.transformer = nn.Module()
        self.transformer.visual = VisionTransformer(config.visual, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        start = self.config.visual["image_start_id"]
        cache = kwargs.get("past_key_values")
        first = cache is None or cache.get_seq_length() == 0
        if first and input_ids is not None and (input_ids == start).any():
            begins = (input_ids == start).nonzero().tolist()
            ends = (input_ids == start + 1).nonzero().tolist()
            names = []
            for (row, begin), (_, end) in zip(begins, ends, strict=True):
                name = input_ids[row, begin + 1 : end].tolist()
                names.append(bytes(name[: name.index(start + 2)]).decode())
            images = self.transformer.visual.encode(names)
            inputs_embeds = self.model.embed_tokens(input_ids).clone()
            for image, (row, begin), (_, end) in zip(images, begins, ends, strict=True):
                inputs_embeds[row, begin + 1 : end] = image
            input_ids = None
        return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
