"""Image steps, by Pillow: bounded decoding, geometry, and the layout as a tensor.

An image stays a Pillow image until its layout; every step that moves pixels notes it in the context's `View`, so that
boxes find their way back. Only JPEG and PNG decoders are ever reached, whatever else Pillow has. Imported only for
releases that take images: Pillow is an extra.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops

from muster_agent.engines.port import Array
from muster_agent.pipeline.value import Context, PrepareOperation, Unfit, View
from muster_shared import pipeline as p
from muster_shared.pipeline_prepare import region

PIXELS_MAX = 50_000_000  # After a resize too: the shorter side of a thread-like image says nothing about the longer.
MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))  # 8 bits a channel at most.
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}
ORIENTATION = 0x0112  # The EXIF tag; its values 2..8 and the transpose that undoes each, EXIF 2.3, 4.6.4 A.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Size = tuple[int, int]
"""Width, height: Pillow's order."""

Sizing = p.Resize | p.ResizeShorter | p.Letterbox


def decode(step: p.DecodeImage, following: Sequence[p.PrepareStep]) -> PrepareOperation:
    """Return the operation of `step`. `following` are the steps after it: a draft looks for the resize among them."""
    sizing = _sizing(following) if step.draft else None
    mode = "L" if step.colour == "GRAY" else "RGB"

    def operation(value: object, context: Context) -> Image.Image:
        assert isinstance(value, bytes)
        if len(value) > step.bytes_max:
            raise Unfit(f"has {len(value)} bytes; the limit is {step.bytes_max}")
        try:
            image: Image.Image = Image.open(io.BytesIO(value), formats=(FORMATS[context.content_type],))
        except Exception as error:  # Pillow's decoders share no error tree: struct, zlib, Syntax- and OSError are seen.
            raise Unfit(f"is no readable {context.content_type}") from error
        width, height = image.size
        if width * height > step.pixels_max:
            raise Unfit(f"has {width} x {height} pixels; the limit is {step.pixels_max}")
        if image.mode not in MODES:
            raise Unfit(f"has pixels of mode {image.mode}; 8 bits a channel are read")
        try:
            turn = UPRIGHT.get(_orientation(image))
            swaps = turn in (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])
            upright = (height, width) if swaps else (width, height)
            if sizing is not None:
                wanted = _target(sizing, upright)
                image.draft(None, wanted[::-1] if swaps else wanted)
            image.load()
            if image.mode != mode:
                image = image.convert(mode)
        except Exception as error:
            raise Unfit(f"is a damaged {context.content_type} ({error})") from error
        if turn is not None:
            image = image.transpose(turn)
        context.view = View(*upright)
        context.view.scaled(upright[0] / image.width, upright[1] / image.height)
        return image

    return operation


def geometry(step: p.Invert | Sizing | p.Crop | p.Region) -> PrepareOperation:
    """Return the operation of a step from image to image."""

    def operation(value: object, context: Context) -> Image.Image:
        assert isinstance(value, Image.Image)
        assert context.view is not None
        match step:
            case p.Invert():
                return ImageChops.invert(value)
            case p.Resize() | p.ResizeShorter():
                return _resize(value, _target(step, value.size), step, context.view)
            case p.Letterbox():
                return _letterbox(step, value, context.view)
            case p.Crop():
                # As torchvision: Python's round, half to even.
                left, top = round((value.width - step.width) / 2), round((value.height - step.height) / 2)
                return _cut(value, (left, top, left + step.width, top + step.height), context.view)
            case p.Region():
                left, right = region(value.width, step.left, step.right)
                top, bottom = region(value.height, step.top, step.bottom)
                return _cut(value, (left, top, right, bottom), context.view)

    return operation


def layout(step: p.Layout) -> PrepareOperation:
    """Return the operation of the step from image to tensor. Its result may be a view: `normalise` copies anyway."""

    def operation(value: object, context: Context) -> Array:
        assert isinstance(value, Image.Image)
        assert context.view is not None
        context.view.seen_width, context.view.seen_height = value.size
        pixels = np.asarray(value)
        if pixels.ndim == 2:
            return pixels[np.newaxis, np.newaxis] if step.order == "NCHW" else pixels[np.newaxis, :, :, np.newaxis]
        if step.colour == "BGR":
            pixels = pixels[:, :, ::-1]
        return pixels.transpose(2, 0, 1)[np.newaxis] if step.order == "NCHW" else pixels[np.newaxis]

    return operation


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # A camera's broken notes about a picture do not make the picture unreadable.
        return 1


def _sizing(following: Sequence[p.PrepareStep]) -> Sizing | None:
    step = next((step for step in following if not isinstance(step, p.Invert)), None)
    return step if isinstance(step, p.Resize | p.ResizeShorter | p.Letterbox) else None


def _target(step: Sizing, size: Size) -> Size:
    """Return the size that an image of `size` is resized to."""
    width, height = size
    match step:
        case p.Resize():
            return step.width, step.height
        case p.ResizeShorter():
            if width <= height:
                return step.side, step.side * height // width
            return step.side * width // height, step.side
        case p.Letterbox():
            scale = min(step.width / width, step.height / height)
            return max(1, round(width * scale)), max(1, round(height * scale))


def _resize(image: Image.Image, target: Size, step: Sizing, view: View) -> Image.Image:
    width, height = image.size
    if target[0] * target[1] > PIXELS_MAX:
        raise Unfit(f"would be resized to {target[0]} x {target[1]}; the limit is {PIXELS_MAX} pixels")
    view.scaled(width / target[0], height / target[1])
    if target == image.size:
        return image
    if isinstance(step, p.Resize) and not step.antialias:
        # A transform samples where the centre of each new pixel falls, without widening the filter.
        whole = (0, 0, width, height)
        return image.transform(target, Image.Transform.EXTENT, whole, FILTERS[step.filter])
    return image.resize(target, FILTERS[step.filter])


def _letterbox(step: p.Letterbox, image: Image.Image, view: View) -> Image.Image:
    inner = _resize(image, _target(step, image.size), step, view)
    left, top = (step.width - inner.width) // 2, (step.height - inner.height) // 2
    if step.place == "corner":
        left = top = 0
    view.moved(-left, -top)
    if inner.size == (step.width, step.height):
        return inner
    fill = step.fill if inner.mode == "L" else (step.fill,) * 3
    canvas = Image.new(inner.mode, (step.width, step.height), fill)
    canvas.paste(inner, (left, top))
    return canvas


def _cut(image: Image.Image, box: tuple[int, int, int, int], view: View) -> Image.Image:
    view.moved(box[0], box[1])
    return image if box == (0, 0, *image.size) else image.crop(box)
