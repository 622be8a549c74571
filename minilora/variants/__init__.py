"""Relatives of LoRA, one idea a file; nothing here is imported until it is asked for."""
