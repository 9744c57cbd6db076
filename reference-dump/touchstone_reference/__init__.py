"""The PyTorch side of Touchstone: reference models, their training, and the golden cases dumped from them."""
