"""Videos and cameras: reading, writing, and `detection predict` on them."""

import json
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detection.commands.predict import predict
from detection.errors import DataError
from detection.video import Video, VideoWriter

HEIGHT, WIDTH, RATE = 96, 128, 20


def synthetic_frame(number: int) -> NDArray[np.uint8]:
    """A frame whose gray value is its number times eight, with a bright square at the top left and noise below it."""
    image = np.full((HEIGHT, WIDTH, 3), 8 * number, np.uint8)
    image[:24, :32] = 255
    image[32:, :64] = np.random.default_rng(number).integers(0, 256, (HEIGHT - 32, 64, 3))
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """Number of a frame of `synthetic_frame`."""
    return round(float(image[-30:, -30:].mean()) / 8)


def write_video(path: Path, count: int = 30, codec: str = "libx264", **options: str) -> Path:
    """A video of `count` frames with a key frame every five."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "5", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(synthetic_frame(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_frames(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_frames_of_a_file(tmp_path: Path, name: str, codec: str) -> None:
    with Video.open(write_video(tmp_path / name, codec=codec)) as video:
        frames = list(video.frames())
        assert video.rate == RATE
    assert [frame.number for frame in frames] == list(range(30)) == [number_of(frame.image) for frame in frames]
    assert [frame.time for frame in frames] == pytest.approx([i / RATE for i in range(30)], abs=1e-3)
    assert video.problem() is None
    with Video.open(tmp_path / name) as video:
        every = list(video.frames(every=7))
    assert [(frame.number, number_of(frame.image)) for frame in every] == [(i, i) for i in range(0, 30, 7)]
    assert video.problem() is None


def test_a_phone_video_is_the_right_way_up(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4").read_bytes()
    identity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, HEIGHT << 16, 0, 0x40000000)  # clockwise
    start = content.index(identity, content.index(b"tkhd"))
    (tmp_path / "a.mp4").write_bytes(content[:start] + turned + content[start + len(turned) :])
    with Video.open(tmp_path / "a.mp4") as video:
        image = next(video.frames()).image
    assert image.shape == (WIDTH, HEIGHT, 3)
    assert image[:20, -20:].min() > 200
    assert image[-20:, -20:].max() < 50


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_written_frames_keep_their_times(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {codec})
    times = [0.0, 0.05, 0.4, 0.4, 1.001]
    with VideoWriter(tmp_path / "new/a.mp4", Fraction(30000, 1001)) as writer:
        for i, time in enumerate(times):
            writer.write(Image.fromarray(synthetic_frame(7 * i)[:95, :127]), time)
        writer.write(Image.new("RGB", (64, 64)), 2.0)  # the resolution changes
    found = read_frames(tmp_path / "new/a.mp4")
    assert [time for time, _ in found] == pytest.approx([*times, 2.0], abs=1e-3)
    assert {image.shape for _, image in found} == {(96, 128, 3)}
    assert [number_of(image[:-2, :-2]) for _, image in found[:5]] == pytest.approx([0, 7, 14, 21, 28], abs=1)
    with av.open(str(tmp_path / "new/a.mp4")) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_predict_on_a_video(project: Path, weights: Path) -> None:
    write_video(project / "clip.mp4", 11)
    summary = predict(project / "clip.mp4", weights, project / "out", 0.0, "cpu", every=2, batch_size=4)
    found = lines(project / "out/clip.jsonl")
    assert [(one["frame"], one["time"]) for one in found] == [(i, i / RATE) for i in range(0, 11, 2)]
    assert all(one["detections"] for one in found)
    assert f"{sum(len(one['detections']) for one in found)} detections on 6 frames of" in summary
    drawn = read_frames(project / "out/clip.mp4")
    assert [time for time, _ in drawn] == pytest.approx([0.1 * i for i in range(6)], abs=1e-3)
    assert not (project / "out/detections.json").exists()
    Image.fromarray(synthetic_frame(4)).save(project / "frame.png")
    predict(project / "frame.png", weights, project / "image", 0.0, "cpu")
    (image,) = json.loads((project / "image/detections.json").read_text())
    first, second = (one["detections"][0] for one in (image, found[2]))
    assert second["box"] == pytest.approx(first["box"], abs=3)
    with pytest.raises(DataError, match="--format coco"):
        predict(project / "clip.mp4", weights, project / "out", coco=True)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mkv", "libx264", {}), ("a.ts", "libx264", {})],
)
def test_a_truncated_video_is_named_and_its_frames_are_kept(
    project: Path, weights: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    content = write_video(project / name, 30, codec, **options).read_bytes()
    (project / name).write_bytes(content[: len(content) * 6 // 10])
    write_video(project / "whole.mp4", 3)
    out = project / "out"
    with pytest.raises(DataError, match=rf"1 of 2 files cannot be read: .*{name}"):
        predict([project / name, project / "whole.mp4"], weights, out, device="cpu")
    target = out / (name if name == "a.mp4" else f"{name}.mp4")
    found = lines(target.with_suffix(".jsonl"))
    assert 5 < len(found) < 30
    assert [one["frame"] for one in found] == list(range(len(found)))
    assert len(read_frames(target)) == len(found)
    assert len(lines(out / "whole.jsonl")) == 3


def test_damage_in_the_middle_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    content = bytearray(write_video(tmp_path / "a.mp4", movflags="faststart").read_bytes())
    middle = len(content) * 6 // 10
    content[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    (tmp_path / "a.mp4").write_bytes(content)
    with Video.open(tmp_path / "a.mp4") as video:
        frames = list(video.frames())
    assert 10 < len(frames) <= 30
    assert video.problem() is not None
    assert frames[-1].time == pytest.approx(29 / RATE, abs=0.3)


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"])
def test_files_that_are_no_videos(project: Path, weights: Path, content: bytes) -> None:
    (project / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 1 files cannot be read: .*a\.mp4"):
        predict(project / "a.mp4", weights, project / "out", device="cpu")
    assert not list((project / "out").iterdir())


def test_a_file_with_sound_only(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        Video.open(tmp_path / "a.mp4")


def test_a_camera(project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the opening is replaced: FFmpeg's test image instead of a device."""
    opened, real = [], av.open

    def fake(file: str, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("format") not in ("v4l2", "avfoundation"):
            return real(file, *args, **kwargs)
        opened.append(file)
        return real(f"testsrc=size=128x96:rate={RATE}:duration=0.4", format="lavfi")

    monkeypatch.setattr(av, "open", fake)
    summary = predict([], weights, project / "out", 0.0, "cpu", camera=3, every=2)
    assert opened == ["3" if sys.platform == "darwin" else "/dev/video3"]
    found = lines(project / "out/camera3.jsonl")
    assert [one["frame"] for one in found] == [0, 2, 4, 6]
    assert "4 frames of camera3" in summary
    assert len(read_frames(project / "out/camera3.mp4")) == 4


def test_no_camera_and_no_pyav(project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot be read: camera 77"):
        predict([], weights, project / "out", camera=77, device="cpu")
    monkeypatch.setitem(sys.modules, "av", None)
    (project / "a.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.mp4.*pip install"):
        predict(project / "a.mp4", weights, project / "out")


def test_an_interruption_keeps_the_video(project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(project / "clip.mp4", 12)
    written: list[int] = []
    real = VideoWriter.write

    def write(self: VideoWriter, *args: Any) -> None:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(1)
        real(self, *args)

    monkeypatch.setattr(VideoWriter, "write", write)
    with pytest.raises(KeyboardInterrupt):
        predict(project / "clip.mp4", weights, project / "out", device="cpu")
    assert len(lines(project / "out/clip.jsonl")) == len(read_frames(project / "out/clip.mp4")) == 7
