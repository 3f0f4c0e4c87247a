"""The science of SSD on logits: the operator, the theory, the toy, the probe, the forecast."""
