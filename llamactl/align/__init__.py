"""The paper's algorithms: pure functions of tensors and records."""
