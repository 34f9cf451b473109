"""Sequential teacher-to-student distillation of vision transformers over magnifications, searched on Ray."""

__version__ = "0.1.0"
