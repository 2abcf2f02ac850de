#include "vm/image_import.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/process.h"

namespace snow {
namespace {

using nlohmann::json;

constexpr int kInspectMs = 120'000;
constexpr int kConvertMs = 4 * 3600 * 1000;
constexpr std::array kFormats = {"raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc"};

// Things that people take for disk images, by their first bytes.
struct Magic {
  std::string_view bytes;
  std::string_view advice;
};
constexpr std::array kNotImages = {
    Magic{"\x1f\x8b", "it is compressed (gzip); unpack it first"},
    Magic{"\xfd"
          "7zXZ",
          "it is compressed (xz); unpack it first"},
    Magic{"\x28\xb5\x2f\xfd", "it is compressed (zstd); unpack it first"},
    Magic{"BZh", "it is compressed (bzip2); unpack it first"},
    Magic{"PK\x03\x04", "it is a zip archive; unpack it first"},
    Magic{"\x7f"
          "ELF",
          "it is a program; a kernel is given with --kernel"},
    Magic{
        "# Disk DescriptorFile",
        "it only describes a disk that lies in other files; convert it to one file with `qemu-img "
        "convert -O qcow2`"},
};

struct Source {
  std::string path;  // absolute: never taken for a protocol by qemu-img
  uint64_t size = 0;
  Fd fd;
};

Result<Source> open_source(const std::string& what, const std::string& path) {
  Source source;
  std::error_code ignored;
  source.path = std::filesystem::absolute(path, ignored).string();
  // O_NONBLOCK: a FIFO must not hang us.
  source.fd = Fd(::open(source.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!source.fd) {
    const Code code = errno == ENOENT || errno == ENOTDIR ? Code::not_found : Code::host_failed;
    return fail_errno(code, "{} '{}': cannot open", what, path);
  }
  struct stat status {};
  if (::fstat(source.fd.get(), &status) < 0) {
    return fail_errno(Code::host_failed, "{} '{}': cannot stat", what, path);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(Code::invalid, "{} '{}' is {}; give a file", what, path,
                S_ISDIR(status.st_mode) ? "a folder" : "not a regular file");
  }
  if (status.st_size == 0) return fail(Code::invalid, "{} '{}' is empty", what, path);
  source.size = static_cast<uint64_t>(status.st_size);
  return source;
}

uint64_t big_endian(std::string_view bytes, size_t at, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

// What a qcow2 header says about other files, read by ourselves: qemu-img 7.2 opens an external
// data file already to print information about the image (CVE-2024-4467).
Result<void> check_header(const Source& source) {
  std::string head(std::min<uint64_t>(source.size, 112), '\0');
  SNOW_TRY(read_all_at(source.fd.get(), 0, std::as_writable_bytes(std::span(head)), source.path));
  for (const Magic& magic : kNotImages) {
    if (head.starts_with(magic.bytes)) {
      return fail(Code::invalid, "'{}' is not a disk image: {}", source.path, magic.advice);
    }
  }
  if (!head.starts_with("QFI\xfb")) return {};
  if (head.size() < 72) return fail(Code::corrupt, "'{}': qcow2 header cut short", source.path);
  const uint64_t version = big_endian(head, 4, 4);
  const uint64_t backing_offset = big_endian(head, 8, 8);
  // Version 1 has its encryption field elsewhere; qemu-img says that one.
  const bool encrypted = version >= 2 && big_endian(head, 32, 4) != 0;
  const bool data_file = version >= 3 && (big_endian(head, 72, 8) & 4) != 0;
  if (backing_offset != 0 || data_file) {
    return fail(Code::invalid,
                "'{}' keeps {} in another file; make it one with `qemu-img convert -O qcow2`",
                source.path, data_file ? "its data" : "a part of its data (backing file)");
  }
  if (encrypted) {
    return fail(Code::invalid, "'{}' is encrypted; decrypt it with `qemu-img convert`",
                source.path);
  }
  return {};
}

Error qemu_img_error(Code code, const std::string& path, std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.find("No space left") != std::string::npos) {
    return {Code::host_failed,
            fmt::format("'{}': the disk is full: {}; free space and try again", path, text)};
  }
  return {code, fmt::format("'{}': {}", path, text)};
}

// The format's name, after a check of all that the image says about itself.
Result<std::string> inspect(const Source& source) {
  SNOW_ASSIGN(const ProcessOutput output,
              run_process({"qemu-img", "info", "--output=json", source.path}, kInspectMs));
  if (output.exit_code != 0) {
    return tl::unexpected(qemu_img_error(Code::corrupt, source.path, output.standard_error));
  }
  const json info = json::parse(output.standard_output, nullptr, false);
  if (!info.is_object() || !info.contains("format") || !info["format"].is_string()) {
    return fail(Code::host_failed, "'{}': qemu-img info gave no format", source.path);
  }
  const auto format = info["format"].get<std::string>();
  if (std::find(kFormats.begin(), kFormats.end(), format) == kFormats.end()) {
    return fail(Code::invalid, "'{}' has format {}; known are {}", source.path, format,
                fmt::join(kFormats, ", "));
  }
  const json specific = info.value("format-specific", json::object()).value("data", json::object());
  if (info.value("encrypted", false) || specific.contains("encrypt")) {
    return fail(Code::invalid, "'{}' is encrypted; decrypt it with `qemu-img convert`",
                source.path);
  }
  bool other_files = info.contains("backing-filename") || info.contains("full-backing-filename") ||
                     specific.contains("data-file");
  for (const json& extent : specific.value("extents", json::array())) {
    other_files |= extent.value("filename", "") != source.path;
  }
  if (other_files) {
    return fail(Code::invalid,
                "'{}' keeps data in another file; make it one with `qemu-img convert -O qcow2`",
                source.path);
  }
  if (format == "raw" && source.size % 512 != 0) {
    return fail(Code::invalid,
                "'{}' is not a disk image: no known format, and {} bytes are no whole sectors",
                source.path, source.size);
  }
  return format;
}

// qemu-img reads zeros beyond the end of a file, so that a truncated image would convert.
Result<void> check_whole(const Source& source, const std::string& format) {
  SNOW_ASSIGN(const ProcessOutput checked,
              run_process({"qemu-img", "check", "-q", "-f", format, source.path}, kConvertMs));
  // 2: corruption; 3: only leaked clusters; 63: the format has no check.
  if (checked.exit_code != 0 && checked.exit_code != 3 && checked.exit_code != 63) {
    return tl::unexpected(qemu_img_error(Code::corrupt, source.path,
                                         "truncated or damaged: " + checked.standard_error));
  }
  if (format == "qcow2") return {};  // its check compares with the file's end already
  SNOW_ASSIGN(
      const ProcessOutput mapped,
      run_process({"qemu-img", "map", "--output=json", "-f", format, source.path}, kConvertMs));
  const json map = json::parse(mapped.standard_output, nullptr, false);
  if (mapped.exit_code != 0 || !map.is_array()) {
    return tl::unexpected(qemu_img_error(Code::corrupt, source.path,
                                         "truncated or damaged: " + mapped.standard_error));
  }
  for (const json& piece : map) {
    const auto offset = piece.value("offset", uint64_t{0});
    if (piece.contains("offset") && piece.value("data", false) &&
        offset + piece.value("length", uint64_t{0}) > source.size + 65536) {
      return fail(Code::corrupt, "'{}': truncated: data at byte {}, the file ends at {}",
                  source.path, offset, source.size);
    }
  }
  return {};
}

Result<void> sync(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd || ::fsync(fd.get()) < 0) return fail_errno(Code::host_failed, "{}: cannot sync", path);
  return {};
}

}  // namespace

Result<void> import_disk(const std::string& source_path, const std::string& into) {
  SNOW_ASSIGN(const Source source, open_source("image", source_path));
  SNOW_TRY(check_header(source));
  SNOW_ASSIGN(const std::string format, inspect(source));
  if (format == "raw") {
    Fd copy(::open(into.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!copy) return fail_errno(Code::host_failed, "{}: cannot create", into);
    if (::ioctl(copy.get(), FICLONE, source.fd.get()) == 0) return sync(into);
  } else {
    SNOW_TRY(check_whole(source, format));
  }
  SNOW_ASSIGN(const ProcessOutput converted, run_process({"qemu-img", "convert", "-q", "-f", format,
                                                          "-O", "raw", source.path, into},
                                                         kConvertMs));
  if (converted.exit_code != 0) {
    return tl::unexpected(qemu_img_error(Code::host_failed, source.path, converted.standard_error));
  }
  return sync(into);
}

Result<void> copy_regular_file(const std::string& what, const std::string& source_path,
                               const std::string& into, uint64_t limit_bytes) {
  SNOW_ASSIGN(const Source source, open_source(what, source_path));
  if (source.size > limit_bytes) {
    return fail(Code::invalid, "{} '{}' has {} bytes; at most {} are taken", what, source_path,
                source.size, limit_bytes);
  }
  const Fd copy(::open(into.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!copy) return fail_errno(Code::host_failed, "{}: cannot create", into);
  if (::ioctl(copy.get(), FICLONE, source.fd.get()) < 0) {
    off_t offset = 0;
    while (static_cast<uint64_t>(offset) < source.size) {
      const ssize_t sent = ::sendfile(copy.get(), source.fd.get(), &offset,
                                      source.size - static_cast<uint64_t>(offset));
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0) return fail_errno(Code::host_failed, "{} '{}': cannot copy", what, source_path);
      if (sent == 0) return fail(Code::corrupt, "{} '{}' shrank meanwhile", what, source_path);
    }
  }
  return sync(into);
}

}  // namespace snow
