"""Files that name other ones are no clips."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from controlnext.errors import InputError
from controlnext.runtime.media.video_files import open_clip, write_clip


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile 'clip.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    ],
    ids=["concat", "hls", "sdp"],
)
def test_a_list_of_other_files_is_no_clip(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg would open what it names, of this machine or another one."""
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4", iter([Image.new("RGB", (32, 32))] * 2), Fraction(5))
    (tmp_path / "list.mp4").write_text(content)
    with (
        pytest.raises(InputError, match="cannot read video"),
        open_clip(tmp_path / "list.mp4", lambda image: image),
    ):
        pass
