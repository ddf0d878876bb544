"""Training on frozen or trainable towers: losses, heads. The torch side; import the modules by name."""
