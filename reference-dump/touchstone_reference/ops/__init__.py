"""One module an op of golden/README.md, of the same name; each yields its cases from `cases()`."""

NAMES = (
    "embedding", "layernorm", "linear", "gelu", "add", "append", "attention", "sample",
    "self_attention", "mlp", "block", "gpt", "generate",
)
