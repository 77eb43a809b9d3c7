"""Images against transformers' fast processor, and odd images."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qwen35_jax.processing.image import image_patches, image_size, load_image, normalize, smart_resize
from qwen35_jax.processing.media import MediaError, MediaPolicy
from qwen35_jax.processing.settings import ImageSettings
from tests.processing.reference_images import reference_patches

MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr", "HSV", "PA")


def picture(rng, mode, height, width):
    image = Image.fromarray(rng.integers(0, 256, size=(height, width, 4), dtype=np.uint8))
    return image if mode == "RGBA" else image.convert("RGB" if mode != "LA" else "LA").convert(mode)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def gradient(height=6, width=4):
    """Returns a picture in which every pixel differs."""
    rows, columns = np.indices((height, width))
    return Image.fromarray(np.stack([rows * 40, columns * 60, rows * 0 + 9], axis=-1).astype(np.uint8))


def same(patches, want):
    """Compares the bytes exactly. The Pillow processor divides by 255 first, which rounds once more."""
    np.testing.assert_array_equal(patches, np.rint((want + 1) * 127.5))
    np.testing.assert_allclose(normalize(patches), want, rtol=0, atol=2e-7)


def test_300_random_images_equal_the_reference():
    rng = np.random.default_rng(0)
    settings = ImageSettings(min_pixels=4096, max_pixels=40_000)
    for number in range(300):
        mode = MODES[number % len(MODES)]
        image = picture(rng, mode, *rng.integers(2, 300, size=2).tolist())
        if mode == "P" and number % 20 == 3:
            image.info["transparency"] = int(rng.integers(256))
        want, want_grid = reference_patches(image, min_pixels=4096, max_pixels=40_000)
        patches, grid = image_patches(load_image(image), settings)
        np.testing.assert_array_equal(grid, want_grid)
        same(patches, want)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (200, 1), (70, 100), (256, 256), (33, 1000)])
def test_the_published_settings_equal_the_reference(height, width):
    image = picture(np.random.default_rng(height), "RGB", height, width)
    want, want_grid = reference_patches(image)
    patches, grid = image_patches(load_image(image))
    np.testing.assert_array_equal(grid, want_grid)
    same(patches, want)
    assert patches.dtype == np.uint8 and patches.shape == (grid.prod(), 1536) and grid.dtype == np.int32


def test_sizes_are_those_of_the_reference():
    hf = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", reason="compares with transformers"
    )
    rng = np.random.default_rng(0)
    for _ in range(2000):
        height, width = (10 ** rng.uniform(0, 4, size=2)).astype(int).tolist()
        if max(height, width) > 200 * min(height, width):
            continue
        low, high = sorted((10 ** rng.uniform(3, 7.3, size=2)).astype(int).tolist())
        got = smart_resize(height, width, factor=32, min_pixels=low, max_pixels=high)
        assert got == hf.smart_resize(height, width, 32, low, high)


def test_what_is_too_oblong_is_refused():
    assert image_patches(np.zeros((1, 200, 3), np.uint8))[1].tolist() == [1, 2, 228]
    for shape in ((1, 201, 3), (10_000, 1, 3)):
        with pytest.raises(MediaError, match="too oblong"):
            image_patches(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(orientation, form):
    from PIL import ImageOps

    plain, exif = gradient(), Image.Exif()
    plain.getexif()[0x0112] = exif[0x0112] = orientation
    content = encoded(gradient(), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(load_image(content), np.asarray(ImageOps.exif_transpose(plain)))
    assert image_size(content, "it", MediaPolicy()) == load_image(content).shape[:2]
    assert orientation < 5 or load_image(content).shape == (4, 6, 3)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_turned_tiff_that_pillow_could_map_into_memory(mode, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = gradient().convert(mode)
    plain.save(tmp_path / "a.tiff", exif=exif)
    want = np.asarray(plain.convert("RGB").transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(load_image(tmp_path / "a.tiff"), want)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_as_it_is():
    content = encoded(gradient(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(load_image(content), np.asarray(gradient()))


def test_grey_values_of_16_bits_keep_their_upper_8():
    values = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    want = [[0, 0, 1, 156, 255]]
    assert load_image(encoded(Image.fromarray(values), "PNG"))[..., 0].tolist() == want
    assert load_image(encoded(Image.fromarray(values), "TIFF"))[..., 2].tolist() == want
    assert load_image(Image.fromarray(values.astype(np.int32)))[..., 1].tolist() == want
    assert load_image(Image.fromarray(np.array([[0, 200]], np.int32)))[..., 1].tolist() == [[0, 200]]


@pytest.mark.parametrize("wrong", [np.array([[70_000]], np.int32), np.array([[-1]], np.int32), np.float32([[0.5]])])
def test_numbers_that_are_no_colours_are_refused(wrong):
    with pytest.raises(MediaError, match="values from 0 to 255"):
        load_image(Image.fromarray(wrong))


def test_transparency_lies_on_white():
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 128))
    clear = Image.new("RGBA", (1, 1), (1, 2, 3, 0))
    assert load_image(encoded(half, "PNG"))[0, 0].tolist() == [127, 177, 227]
    assert load_image(encoded(clear, "WEBP", lossless=True))[0, 0].tolist() == [255] * 3
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    content = encoded(palette, "PNG", transparency=1)
    assert load_image(content).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    rgb = encoded(gradient(), "PNG", transparency=(0, 0, 9))
    assert load_image(rgb)[0, 0].tolist() == [255] * 3


def test_the_first_picture_of_an_animation_counts():
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for form in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = encoded(pictures[0], form, save_all=True, append_images=pictures[1:], duration=50, **options)
        assert load_image(content)[0, 0].tolist() == [255, 0, 0], form


def test_cmyk_photographs_are_what_pillow_makes_of_them():
    image = Image.fromarray(np.full((8, 8, 3), (200, 30, 90), np.uint8)).convert("CMYK")
    assert np.abs(load_image(encoded(image, "JPEG", quality=95))[0, 0].astype(int) - (200, 30, 90)).max() < 6


def test_arrays_are_pictures():
    rgb = np.asarray(gradient())
    assert load_image(rgb) is rgb
    assert load_image(rgb[..., 0])[..., 2].tolist() == rgb[..., 0].tolist()
    assert load_image(rgb[..., :1]).shape == rgb.shape
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert (load_image(clear) == 255).all()
    wrong = [
        rgb / np.float32(255),
        rgb.astype(np.int64),
        rgb[None],
        rgb[..., :2],
        np.zeros((0, 3, 3), np.uint8),
    ]
    for array in wrong:
        with pytest.raises(MediaError, match=r"an array of \w+ with shape|no pixels"):
            load_image(array)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_file_that_is_cut_off_is_refused(form):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    content = encoded(image, form)
    with pytest.raises(MediaError, match=r"bytes cannot be read as an image: .*\.$") as caught:
        load_image(content[: len(content) * 2 // 3])
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_refused(tmp_path):
    # EPS would start Ghostscript.
    for content in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(MediaError, match="cannot be read as an image: it is damaged, or in none of the formats"):
            load_image(content)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(MediaError, match=r"a\.jpg' cannot be read as an image"):
        load_image(tmp_path / "a.jpg")


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    content = encoded(Image.new("1", (40_000, 2_000)), "PNG")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("the bomb was decoded"))
    with pytest.raises(MediaError, match="40000x2000 pixels, more than max_pixels=1000000"):
        load_image(content, MediaPolicy(max_pixels=1_000_000))
    with pytest.raises(
        MediaError, match=r"^a file of \d+ bytes has more pixels than max_pixels=89478485; reduce the picture\.$"
    ):
        load_image(encoded(Image.new("1", (40_000, 5_000)), "PNG"))
    with pytest.raises(MediaError, match="more pixels than max_pixels=1000;"):
        load_image(encoded(Image.new("1", (40_000, 5_000)), "PNG"), MediaPolicy(max_pixels=1000))
    with pytest.raises(MediaError, match="4x6 pixels, more than max_pixels=23"):
        load_image(np.asarray(gradient()), MediaPolicy(max_pixels=23))


def test_pillow_does_not_warn_of_what_is_checked(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    code = f"from qwen35_jax.processing.image import load_image; load_image({str(tmp_path / 'a.png')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "10000x10000 pixels, more than max_pixels=89478485; reduce the picture."
    )
    assert "DecompressionBombWarning" not in done.stderr


def test_limits_of_one_image():
    settings = ImageSettings()
    image = np.zeros((400, 400, 3), np.uint8)
    assert image_patches(image, settings.limited({"max_pixels": 256 * 256}))[1].tolist() == [1, 16, 16]
    assert image_patches(image, settings.limited({"max_pixels": 64 * 64}))[1].tolist() == [1, 4, 4]
    assert image_patches(image, settings.limited({"min_pixels": 640 * 640}))[1].tolist() == [1, 40, 40]
    for options in ({"max_pixels": 0}, {"max_pixels": 16_777_217}, {"min_pixels": "9"}, {"min_pixels": True}):
        with pytest.raises(MediaError, match="must be a whole number from 1 to 16777216"):
            settings.limited(options)
    with pytest.raises(MediaError, match="min_pixels=9000 of an image is above its max_pixels=8000"):
        settings.limited({"min_pixels": 9000, "max_pixels": 8000})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_mean": [0.48, 0.46, 0.41]}, r"image_mean=.* is not supported.*\[0.5, 0.5, 0.5\]"),
        ({"do_resize": False}, "do_resize=False is not supported"),
        ({"size": 224}, "size=224 must be an object"),
        ({"size": {"height": 224, "width": 224}}, "must be an object with shortest_edge and longest_edge alone"),
        ({"patch_size": "16"}, "patch_size='16' must be a whole number"),
        ({"patch_size": 0}, "patch_size=0 must be positive"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, "min_pixels=9 is above max_pixels=8"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings.from_json(config)
