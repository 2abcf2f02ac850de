// Drives a fuzz target without libFuzzer: first every file of the corpus, then seeded mutations
// of them and random inputs. `FUZZ COUNT CORPUS_DIR [SEED]`; a failing input's seed is printed by
// the run that crashes, so that the same command replays it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 10000;
  const std::string corpus_dir = argc > 2 ? argv[2] : "";
  const uint32_t seed = argc > 3 ? static_cast<uint32_t>(std::atol(argv[3])) : 1;
  std::vector<std::vector<uint8_t>> corpus = {{}};
  if (std::filesystem::is_directory(corpus_dir)) {
    for (const auto& entry : std::filesystem::directory_iterator(corpus_dir)) {
      std::ifstream in(entry.path(), std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
  }
  std::printf("seed %u, %zu corpus inputs, %ld mutations\n", seed, corpus.size(), count);
  std::fflush(stdout);
  for (const auto& input : corpus) LLVMFuzzerTestOneInput(input.data(), input.size());
  std::mt19937 random(seed);
  for (long i = 0; i < count; ++i) {
    std::vector<uint8_t> input = corpus[random() % corpus.size()];
    if (input.empty() || random() % 4 == 0) {
      input.resize(random() % 512);
      for (auto& byte : input) byte = static_cast<uint8_t>(random());
    }
    const int edits = static_cast<int>(random() % 8);
    for (int edit = 0; edit < edits && !input.empty(); ++edit) {
      const size_t at = random() % input.size();
      switch (random() % 4) {
        case 0:
          input[at] = static_cast<uint8_t>(random());
          break;
        case 1:
          input[at] ^= static_cast<uint8_t>(1u << (random() % 8));
          break;
        case 2:
          input.insert(input.begin() + static_cast<long>(at), static_cast<uint8_t>(random()));
          break;
        default:
          input.resize(at);
      }
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  return 0;
}
