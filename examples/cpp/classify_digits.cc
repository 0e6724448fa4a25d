// Runs a converted model from C++: one call loads the operator library into the session options.
//
//   classify_digits LIBRARY MODEL IMAGES LABELS
//
// LIBRARY is what `python -c "import onnx_ternary; print(onnx_ternary.get_library_path())"` prints,
// MODEL a converted digits_mlp.onnx, IMAGES (rows, 64) float32 and LABELS (rows,) int64, both raw
// and row-major. Prints how many images are classified right.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int64_t kPixels = 64;

template <typename Value>
std::vector<Value> Read(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  std::vector<Value> values(static_cast<size_t>(file.tellg()) / sizeof(Value));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(Value)));
  return values;
}

// ORTCHAR_T is wchar_t on Windows; file names here are ASCII.
std::basic_string<ORTCHAR_T> Path(const std::string& name) { return {name.begin(), name.end()}; }

int Run(char** argv) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "classify_digits");
  Ort::SessionOptions options;
  // The options own the library from here on and unload it with the last session.
  options.RegisterCustomOpsLibrary(Path(argv[1]).c_str());
  Ort::Session session(env, Path(argv[2]).c_str(), options);

  std::vector<float> images = Read<float>(argv[3]);
  const std::vector<int64_t> labels = Read<int64_t>(argv[4]);
  const int64_t rows = static_cast<int64_t>(labels.size());
  if (images.size() != labels.size() * kPixels)
    throw std::runtime_error("images and labels differ");

  const int64_t shape[] = {rows, kPixels};
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value x =
      Ort::Value::CreateTensor<float>(memory, images.data(), images.size(), shape, 2);
  const char* input_names[] = {"image"};
  const char* output_names[] = {"logits"};
  const std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions{nullptr}, input_names, &x, 1, output_names, 1);

  const int64_t classes = outputs[0].GetTensorTypeAndShapeInfo().GetShape()[1];
  const float* logits = outputs[0].GetTensorData<float>();
  int64_t right = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const float* first = logits + row * classes;
    right += std::max_element(first, first + classes) - first == labels[static_cast<size_t>(row)];
  }
  std::printf("%lld of %lld images right\n", static_cast<long long>(right),
              static_cast<long long>(rows));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s LIBRARY MODEL IMAGES LABELS\n", argv[0]);
    return 2;
  }
  try {
    return Run(argv);
  } catch (const std::exception& error) {  // Ort::Exception among them
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
