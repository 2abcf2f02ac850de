// A temporary folder for a test, removed with all that is in it when the test ends.
#pragma once

#include <stdlib.h>

#include <string>

#include "base/file.h"

namespace snow {

class TestFolder {
 public:
  TestFolder() {
    char name[] = "/tmp/snow-test-XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    path_ = name;
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder() { remove_all(path_); }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace snow
