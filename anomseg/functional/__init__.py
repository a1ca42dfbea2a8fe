"""Maths of tensors: no modules, no files, no Lightning."""
