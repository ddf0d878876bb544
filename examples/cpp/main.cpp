// Classify one JPEG with a Vitrail artifact, without Python: predict ARTIFACT PHOTO.jpg
//
// All that decides the answer is read from the artifact's manifest: the model, its precision and threads, size,
// crop, filter, mean, deviation and labels. Exit code 2: wrong use or bad input, in one sentence.

#include <cstdio>
#include <fstream>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

#include "photo.hpp"

using nlohmann::json;

namespace {

ov::CompiledModel compile(const std::string& folder, const json& manifest, const ov::Shape& shape) {
    ov::Core core;
    const std::string entry = manifest["graphs"][0]["entry"], inside = manifest["folder"];
    const std::string precision = manifest["variant"]["precision"];
    auto model = core.read_model(folder + "/" + inside + "/" + entry);
    model->reshape(ov::PartialShape(shape));
    const auto can = core.get_property("CPU", ov::device::capabilities);
    const bool hasBf16 = std::find(can.begin(), can.end(), "BF16") != can.end();
    // OpenVINO would choose bf16 by itself. In int8 the graph says what is int8; the hint is about the rest.
    const bool asksBf16 = precision == "bf16" || (precision == "int8" && hasBf16);
    const auto hint = asksBf16 ? ov::element::bf16 : ov::element::f32;
    ov::AnyMap config{ov::hint::inference_precision(hint), ov::num_streams(1),
                      ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY)};
    const json& threads = manifest["evidence"]["workload"]["threads"];
    if (!threads.is_null()) config.insert(ov::inference_num_threads(threads.get<int>()));
    auto compiled = core.compile_model(model, "CPU", config);
    if (compiled.get_property(ov::hint::inference_precision) != hint)
        refuse("This CPU cannot run the artifact's " + precision + ": select one on it.");
    return compiled;
}

std::vector<double> scoresOf(ov::CompiledModel compiled, const Image& pixels, const Preprocess& to) {
    ov::InferRequest request = compiled.create_infer_request();
    ov::Tensor input = request.get_input_tensor();
    const int plane = to.size * to.size;
    if (to.pixels) {
        std::copy(pixels.rgb.begin(), pixels.rgb.end(), input.data<std::uint8_t>());
    } else {
        for (int c = 0; c < 3; ++c) {
            const auto scale = static_cast<float>(1.0 / (255.0 * to.deviation[c]));
            const auto bias = static_cast<float>(-to.mean[c] / to.deviation[c]);
            for (int i = 0; i < plane; ++i) input.data<float>()[c * plane + i] = pixels.rgb[3 * i + c] * scale + bias;
        }
    }
    request.infer();
    const ov::Tensor output = request.get_output_tensor();
    return {output.data<float>(), output.data<float>() + output.get_size()};
}

// Over all classes, or each by itself where the model was trained so (SigLIP).
std::vector<double> probabilities(std::vector<double> scores, bool sigmoid) {
    const double largest = *std::max_element(scores.begin(), scores.end());
    for (double& score : scores) score = sigmoid ? 1.0 / (1.0 + std::exp(-score)) : std::exp(score - largest);
    const double sum = sigmoid ? 1.0 : std::accumulate(scores.begin(), scores.end(), 0.0);
    for (double& score : scores) score /= sum;
    return scores;
}

void run(const std::string& folder, const std::string& photo) {
    const json manifest = json::parse(readFile(folder + "/manifest.json"));
    if (manifest.value("format", "") != "vitrail-artifact" || manifest.value("schema_version", 0) < 4)
        refuse(folder + " is not an artifact of schema 4 or later: select it again.");
    const json& task = manifest["task"];
    if (task["name"] != "classify") refuse(folder + " has no labels: this example classifies.");
    const json& said = task["preprocess"];
    Preprocess to;
    to.size = said["image_size"];
    to.shortSide = static_cast<int>(std::floor(to.size / said["crop"].get<double>()));
    to.squash = said["crop_mode"] == "squash";
    to.bicubic = said["interpolation"] == "bicubic";
    to.pixels = said.value("pixels", "normalised") == "uint8";
    to.mean = said["mean"];
    to.deviation = said["std"];
    const auto size = static_cast<std::size_t>(to.size);
    const auto shape = to.pixels ? ov::Shape{1, size, size, 3} : ov::Shape{1, 3, size, size};

    const Image pixels = crop(decode(photo, to.shortSide), to);
    const auto scores = scoresOf(compile(folder, manifest, shape), pixels, to);
    const auto found = probabilities(scores, task["probability"] == "sigmoid");

    std::vector<std::string> labels;
    std::ifstream file(folder + "/" + task["labels"].get<std::string>());
    for (std::string line; std::getline(file, line);) labels.push_back(line);
    if (labels.size() != found.size()) refuse(folder + " has other labels than scores: verify it.");
    std::vector<std::size_t> order(found.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
    order.resize(std::min<std::size_t>(order.size(), 5));
    for (std::size_t k : order) std::printf("%.6f\t%s\n", found[k], labels[k].c_str());
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: predict ARTIFACT PHOTO.jpg\n";
        return 2;
    }
    try {
        run(argv[1], argv[2]);
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "predict: " << error.what() << "\n";
        return 2;
    }
}
