// A JPEG's pixels as Vitrail prepares them: libjpeg's accurate DCT at a reduced scale, the EXIF orientation,
// Pillow's resampling in two passes of 8-bit integers, the middle cropped. No rounding differs.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <jpeglib.h>

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> rgb;  // height x width x 3
};

struct Photo {
    Image image;
    int width = 0, height = 0;         // as stored in the file, upright
    std::array<double, 4> box{};       // left, top, right, bottom: the part of `image` that it fills
};

struct Preprocess {
    int size = 0, shortSide = 0;
    bool squash = false, bicubic = true, pixels = false;
    std::array<double, 3> mean{}, deviation{};
};

[[noreturn]] inline void refuse(const std::string& sentence) { throw std::runtime_error(sentence); }

// --- decoding -------------------------------------------------------------------------------------------

inline std::vector<std::uint8_t> readFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(path + " cannot be read: check the path.");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The EXIF orientation, 1 to 8; 1 where there is none.
inline int orientationOf(const jpeg_decompress_struct& jpeg) {
    for (auto marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
        const std::uint8_t* data = marker->data;
        const std::size_t length = marker->data_length;
        if (marker->marker != JPEG_APP0 + 1 || length < 14 || std::string(data, data + 4) != "Exif") continue;
        const std::uint8_t* tiff = data + 6;
        const std::size_t size = length - 6;
        const bool little = tiff[0] == 'I';
        const auto number = [&](std::size_t at, int bytes) -> std::size_t {
            std::size_t value = 0;
            if (at + bytes > size) return 0;
            for (int i = 0; i < bytes; ++i) value = value << 8 | tiff[at + (little ? bytes - 1 - i : i)];
            return value;
        };
        const std::size_t directory = number(4, 4);
        for (std::size_t k = 0; k < number(directory, 2); ++k) {
            const std::size_t entry = directory + 2 + 12 * k;
            if (number(entry, 2) != 0x0112) continue;
            const auto value = static_cast<int>(number(entry + 8, 2));
            return value >= 1 && value <= 8 ? value : 1;
        }
    }
    return 1;
}

// Turn a photo upright: mirrored and turned images are read from other places, and so is the box.
inline Photo upright(Photo photo, int orientation) {
    if (orientation == 1) return photo;
    const bool swaps = orientation >= 5;
    const bool flipX = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool flipY = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const Image& old = photo.image;
    auto [x0, y0, x1, y1] = photo.box;
    if (flipX) std::tie(x0, x1) = std::make_tuple(old.width - x1, old.width - x0);
    if (flipY) std::tie(y0, y1) = std::make_tuple(old.height - y1, old.height - y0);
    Photo turned;
    turned.width = swaps ? photo.height : photo.width;
    turned.height = swaps ? photo.width : photo.height;
    turned.box = swaps ? std::array<double, 4>{y0, x0, y1, x1} : std::array<double, 4>{x0, y0, x1, y1};
    turned.image = {swaps ? old.height : old.width, swaps ? old.width : old.height, {}};
    turned.image.rgb.resize(old.rgb.size());
    for (int y = 0; y < turned.image.height; ++y) {
        for (int x = 0; x < turned.image.width; ++x) {
            int column = swaps ? y : x, row = swaps ? x : y;
            if (flipX) column = old.width - 1 - column;
            if (flipY) row = old.height - 1 - row;
            const auto from = old.rgb.begin() + 3 * (static_cast<std::ptrdiff_t>(row) * old.width + column);
            std::copy_n(from, 3, turned.image.rgb.begin() + 3 * (static_cast<std::ptrdiff_t>(y) * turned.image.width + x));
        }
    }
    return turned;
}

// A JPEG, at 1/2, 1/4 or 1/8 of its size where that leaves twice the short side that is asked for.
inline Photo decode(const std::string& path, int shortSide) {
    const auto bytes = readFile(path);
    jpeg_decompress_struct jpeg{};
    jpeg_error_mgr errors{};
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr info) {  // may not return, and C frames lie between here and decode
        char said[JMSG_LENGTH_MAX];
        info->err->format_message(info, said);
        std::cerr << "predict: the photo cannot be decoded (" << said << "): give a JPEG.\n";
        std::exit(2);
    };
    jpeg_create_decompress(&jpeg);
    jpeg_mem_src(&jpeg, bytes.data(), bytes.size());
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&jpeg, TRUE);
    if (jpeg.num_components > 3) refuse(path + " is a CMYK JPEG: convert it to RGB.");
    Photo photo;
    photo.width = static_cast<int>(jpeg.image_width);
    photo.height = static_cast<int>(jpeg.image_height);
    if (1.0 * photo.width * photo.height > 50e6) refuse(path + " has more than 50 megapixels: make it smaller.");
    int scale = 8;
    while (scale > 1 && std::min(photo.width, photo.height) / (2 * shortSide) < scale) scale /= 2;
    jpeg.scale_num = 1;
    jpeg.scale_denom = static_cast<unsigned>(scale);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    photo.image = {static_cast<int>(jpeg.output_width), static_cast<int>(jpeg.output_height), {}};
    photo.image.rgb.resize(std::size_t{3} * jpeg.output_width * jpeg.output_height);
    while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = photo.image.rgb.data() + std::size_t{3} * jpeg.output_width * jpeg.output_scanline;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    photo.box = {0.0, 0.0, 1.0 * photo.width / scale, 1.0 * photo.height / scale};
    const int orientation = orientationOf(jpeg);
    jpeg_destroy_decompress(&jpeg);
    return upright(std::move(photo), orientation);
}

// --- resizing -------------------------------------------------------------------------------------------

inline double filterAt(double x, bool bicubic) {
    x = std::abs(x);
    if (!bicubic) return x < 1.0 ? 1.0 - x : 0.0;
    constexpr double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

// One direction: `count` lines of `length` pixels become lines of `target`; steps are between pixels and lines.
inline void resample(const std::uint8_t* in, std::uint8_t* out, int lines, int length, int target, double begin, double end,
              int pixelStep, int lineStep, int outPixelStep, int outLineStep, bool bicubic) {
    constexpr int bits = 22;  // of the weights' fraction: 32 bits hold 8 of a pixel and 2 for overshoot beside it
    const double step = (end - begin) / target, widened = std::max(step, 1.0);
    const double reach = (bicubic ? 2.0 : 1.0) * widened;
    std::vector<double> weights;
    std::vector<std::int32_t> fixed;
    for (int k = 0; k < target; ++k) {
        const double centre = begin + (k + 0.5) * step;
        const int first = std::max(static_cast<int>(centre - reach + 0.5), 0);
        const int last = std::min(static_cast<int>(centre + reach + 0.5), length);
        weights.clear();
        for (int x = first; x < last; ++x) weights.push_back(filterAt((x - centre + 0.5) * (1.0 / widened), bicubic));
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        fixed.clear();
        for (double weight : weights) {
            const double scaled = weight / sum * (1 << bits);
            fixed.push_back(static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
        }
        for (int line = 0; line < lines; ++line) {
            for (int channel = 0; channel < 3; ++channel) {
                const std::uint8_t* from = in + std::ptrdiff_t{line} * lineStep + first * pixelStep + channel;
                std::int32_t value = 1 << (bits - 1);
                for (std::size_t i = 0; i < fixed.size(); ++i) value += from[i * pixelStep] * fixed[i];
                out[std::ptrdiff_t{line} * outLineStep + k * outPixelStep + channel] =
                    static_cast<std::uint8_t>(std::clamp(value >> bits, 0, 255));
            }
        }
    }
}

inline Image resize(const Image& image, int width, int height, const std::array<double, 4>& box, bool bicubic) {
    // Pillow keeps the box in single precision.
    const float x0 = box[0], y0 = box[1], x1 = box[2], y1 = box[3];
    Image across = image;
    if (width != image.width || x0 != 0.0f || x1 != width) {
        across = {width, image.height, std::vector<std::uint8_t>(std::size_t{3} * width * image.height)};
        resample(image.rgb.data(), across.rgb.data(), image.height, image.width, width, x0, x1, 3, 3 * image.width, 3,
                 3 * width, bicubic);
    }
    if (height == image.height && y0 == 0.0f && y1 == height) return across;
    Image both{width, height, std::vector<std::uint8_t>(std::size_t{3} * width * height)};
    resample(across.rgb.data(), both.rgb.data(), width, image.height, height, y0, y1, 3 * width, 3, 3 * width, 3, bicubic);
    return both;
}

// The short side to `shortSide`, then the middle: uint8 size x size x 3.
inline Image crop(const Photo& photo, const Preprocess& to) {
    int width = to.shortSide, height = to.shortSide;
    if (!to.squash && photo.width <= photo.height) {
        height = static_cast<int>(1.0 * to.shortSide * photo.height / photo.width);
    } else if (!to.squash) {
        width = static_cast<int>(1.0 * to.shortSide * photo.width / photo.height);
    }
    if (std::max(width, height) > 32 * to.shortSide) refuse("the photo is longer than 32 times its width: crop it.");
    const Image resized = resize(photo.image, width, height, photo.box, to.bicubic);
    const int left = static_cast<int>(std::nearbyint((width - to.size) / 2.0));  // halves to even, as Python rounds
    const int top = static_cast<int>(std::nearbyint((height - to.size) / 2.0));
    Image middle{to.size, to.size, {}};
    for (int y = 0; y < to.size; ++y) {
        const auto from = resized.rgb.begin() + 3 * (std::ptrdiff_t{top + y} * width + left);
        middle.rgb.insert(middle.rgb.end(), from, from + 3 * to.size);
    }
    return middle;
}
