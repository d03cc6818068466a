"""Image file formats, by file extension or by first bytes."""

import re

_PICTURES = """
    jpg jpeg jpe jfif jif jfi pjpeg pjp mpo png apng webp gif bmp dib rle tif tiff btf avif avifs heic heics heif heifs
    hif jxl jp2 j2k j2c jpc jpf jpx jpm jph ppm pgm pbm pnm pam pfm tga icb vda vst ico cur icns qoi psd psb dds pcx dcx
    sgi rgb rgba bw ras sun xbm xpm svg svgz eps ps epsf wmf emf fits fit fts blp ftc ftu gbr im iim msp palm pcd pxr
    spi spider fli flc exr hdr pic jbig jb2 jls jxr wdp hdp xcf fpx djvu djv
"""
_CAMERAS = "dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw raw 3fr iiq kdc dcr mrw x3f erf mef mos rwl gpr"

IMAGE_SUFFIXES = frozenset("." + ending for ending in f"{_PICTURES} {_CAMERAS}".split())
"""Image file extensions, lower case. Formats without a decoder are set aside with a reason, not ignored."""

HEAD = 4096  # how many of a file's first bytes identify its format

_STARTS: dict[str, tuple[bytes, ...]] = {  # format -> how its files can start
    "JPEG": (b"\xff\xd8",),
    "PNG": (b"\x89PNG",),
    "GIF": (b"GIF8",),
    "JPEG 2000": (b"\xffO\xffQ", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    "JPEG XL": (b"\xff\n", b"\x00\x00\x00\x0cJXL \r\n\x87\n"),
    "JPEG XR": (b"II\xbc\x01",),
    "PSD": (b"8BPS",),
    "QOI": (b"qoif",),
    "DDS": (b"DDS ",),
    "ICNS": (b"icns",),
    "Sun raster": (b"Y\xa6j\x95",),
    "EPS": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "WMF": (b"\xd7\xcd\xc6\x9a",),
    "FITS": (b"SIMPLE  =",),
    "BLP": (b"BLP1", b"BLP2"),
    "XPM": (b"/* XPM */",),
    "MNG": (b"\x8aMNG", b"\x8bJNG"),
    "OpenEXR": (b"v/1\x01",),
    "Radiance HDR": (b"#?RADIANCE", b"#?RGBE"),
    "XCF": (b"gimp xcf",),
    "DjVu": (b"AT&TFORM",),
    "XV thumbnail": (b"P7 332",),
    "MSP": (b"DanM", b"LinS"),
    "DCX": (b"\xb1h\xde:",),
    "FTEX": (b"FTEX", b"FTC\x00", b"FTU\x00"),
    "PIXAR": (b"\x80\xe8\x00\x00",),
    "McIDAS": (b"\x00\x00\x00\x00\x00\x00\x00\x04",),
    "IM": (b"Image type:",),
}
_RAW = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\x00", b"II\x1a\x00\x00\x00HEAP", b"\x00MRM", b"FOVb")
_STARTS["camera raw"] = _RAW

_PATTERNS = {
    "WEBP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM.{4}(\x00{4}|.{8}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00)",
    "camera raw": rb"(II\*\x00|MM\x00\*).{4}CR\x02",
    "TIFF": rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+",
    "PPM": rb"P[1-6f][\s#]|P[yF][\s#\d]|P0CMYK|PyRGBA|PyCMYK",
    "PAM": rb"P7\s",
    "ICO": rb"\x00\x00\x01\x00[\x01-\x40]\x00.{3}\x00",
    "CUR": rb"\x00\x00\x02\x00[\x01-\x40]\x00.{3}\x00",
    "FLI": rb".{4}[\x11\x12]\xaf.{8}[\x00\x03]\x00",
    "GBR": rb".{20}GIMP",
    "SPIDER": rb"(\x00\x00\x80\x3f.{12}\x00\x00\x80\x3f|\x3f\x80\x00\x00.{12}\x3f\x80\x00\x00)",
    "Photo CD": rb".{2048}PCD_",
    "PCX": rb"\x0a[\x00\x02\x03\x05]\x01[\x01\x02\x04\x08]",
    "SGI": rb"\x01\xda[\x00\x01][\x01\x02]\x00[\x01-\x03]",
    "EMF": rb"\x01\x00\x00\x00.{36} EMF",
    "XBM": rb"#define\s+\w*_?width\s+\d+",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml|<!--|<!DOCTYPE svg|<svg)",
}
"""Formats that no fixed prefix identifies, in order of precedence."""
_COMPILED = {name: re.compile(pattern, re.DOTALL) for name, pattern in _PATTERNS.items()}

_BRANDS = {"AVIF": [b"avif", b"avis"], "HEIC": [b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"]}
_BRANDS["camera raw"] = [b"crx "]  # format -> brands of `ftyp` containers


def format_of(head: bytes) -> str | None:
    """A file's image format, from its first `HEAD` bytes; None if not an image, or without a signature (TGA)."""
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head), 256)
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
        return next((name for name, of_it in _BRANDS.items() if brands.intersection(of_it)), None)
    for name, starts in _STARTS.items():
        if head.startswith(starts):
            return name
    name = next((name for name, pattern in _COMPILED.items() if pattern.match(head)), "")
    return None if not name or (name == "SVG" and b"<svg" not in head) else name
