"""Networks from the inside: CLIP (`clip`, `encoders`), self-supervised ViTs (`attention`), the demo's own
(`demo`), and the files that their weights come from (`checkpoints`). `clip` and `encoders` alone know
open_clip's insides, `attention` timm's."""
