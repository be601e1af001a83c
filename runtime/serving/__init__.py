"""The HTTP server of ``controlnext serve``. Needs the extra ``serve``."""
