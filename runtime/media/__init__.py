"""Images and videos from and to files."""

from __future__ import annotations

from controlnext.runtime.media.clips import export_to_video, load_video, video_fps

__all__ = ["export_to_video", "load_video", "video_fps"]
