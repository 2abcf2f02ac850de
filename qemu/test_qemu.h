// For tests: a real QEMU without a jail. Its folder takes the place of /vm; folder and process go
// with the object.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "qemu/machine.h"
#include "qemu/qmp.h"

namespace snow::testing {

inline constexpr const char* kQemu = "/usr/bin/qemu-system-x86_64";

class TestFolder {
 public:
  // In tmpfs where there is one: as a VM's memory.
  TestFolder() {
    std::string pattern = "/dev/shm/snow-qemu-test-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) abort();
    path_ = pattern;
    std::filesystem::create_directory(path_ + "/run");
  }
  ~TestFolder() { remove_all(path_); }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  // A path of JailPaths, in this folder.
  [[nodiscard]] std::string operator()(std::string_view jail_path) const {
    return path_ + std::string(jail_path.substr(3));
  }
  [[nodiscard]] const std::string& path() const { return path_; }

  void write(std::string_view jail_path, std::string_view content) const {
    std::ofstream((*this)(jail_path), std::ios::binary) << content;
  }
  // A file of `size_bytes`, all hole.
  void make_sparse(std::string_view jail_path, uint64_t size_bytes) const {
    write(jail_path, "");
    std::filesystem::resize_file((*this)(jail_path), size_bytes);
  }

 private:
  std::string path_;
};

class TestQemu {
 public:
  TestQemu(const TestFolder& folder, const MachineConfig& config, Launch::Kind kind) {
    Launch launch;
    launch.kind = kind;
    launch.name = "test,with comma";
    launch.uuid = random_uuid();
    launch.mac = "52:54:00:12:34:56";
    std::vector<std::string> arguments = command_line(kQemu, config, launch);
    for (std::string& argument : arguments) {
      for (size_t at = 0; (at = argument.find("/vm/", at)) != std::string::npos;)
        argument.replace(at, 3, folder.path());
    }
    log_path_ = folder.path() + "/log";
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int log = open(log_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      dup2(log, 1);
      dup2(log, 2);
      std::vector<char*> pointers;
      for (std::string& argument : arguments) pointers.push_back(argument.data());
      pointers.push_back(nullptr);
      execv(kQemu, pointers.data());
      _exit(127);
    }
    connection_ = Qmp::connect(folder(JailPaths::kQmp), 60'000, [this] { return running(); });
  }
  ~TestQemu() {
    kill_now();
    if (connection_) connection_->reset();
  }
  TestQemu(const TestQemu&) = delete;
  TestQemu& operator=(const TestQemu&) = delete;

  [[nodiscard]] bool connected() const { return connection_.has_value(); }
  [[nodiscard]] Qmp& qmp() { return **connection_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  bool running() {
    if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = -1;
    return pid_ > 0;
  }
  void kill_now() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  // What QEMU printed, and why there is no connection.
  [[nodiscard]] std::string log() const {
    return (connection_ ? "" : connection_.error().message + "\n") +
           read_file(log_path_).value_or("");
  }

 private:
  pid_t pid_ = -1;
  std::string log_path_;
  Result<std::unique_ptr<Qmp>> connection_ = fail(Code::internal, "not started");
};

// A guest in 16-bit real mode that runs wherever it is loaded. It first zeroes, then for ever
// increments a 32-bit counter at the start of each page from 0x20000 to 0x80000, in turn: at any
// moment the counters of the pages before some page are one ahead of those behind it, which is
// wrong as soon as one page is stale or lost.
inline constexpr uint64_t kFirstCounter = 0x20000;
inline constexpr uint64_t kCountersEnd = 0x80000;
inline constexpr std::array<unsigned char, 43> kCountingGuest = {
    0xfa,                                                  //  0        cli
    0xb8, 0x00, 0x20,                                      //  1        mov ax, 0x2000
    0x8e, 0xd8,                                            //  4 zero:  mov ds, ax
    0x66, 0xc7, 0x06, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  //  6        mov dword [0], 0
    0x05, 0x00, 0x01,                                      // 15        add ax, 0x100 (one page)
    0x3d, 0x00, 0x80,                                      // 18        cmp ax, 0x8000
    0x75, 0xed,                                            // 21        jne zero
    0xb8, 0x00, 0x20,                                      // 23 round: mov ax, 0x2000
    0x8e, 0xd8,                                            // 26 page:  mov ds, ax
    0x66, 0xff, 0x06, 0x00, 0x00,                          // 28        inc dword [0]
    0x05, 0x00, 0x01,                                      // 33        add ax, 0x100
    0x3d, 0x00, 0x80,                                      // 36        cmp ax, 0x8000
    0x75, 0xf1,                                            // 39        jne page
    0xeb, 0xec,                                            // 41        jmp round
};

// It as the boot sector of a disk of 1 MiB, for q35.
inline std::string counting_disk() {
  std::string disk(1 << 20, '\0');
  std::copy(kCountingGuest.begin(), kCountingGuest.end(), disk.begin());
  disk[510] = '\x55';
  disk[511] = '\xaa';
  return disk;
}

// It as a Linux kernel, for microvm: the setup code of a bzImage is entered in real mode at 0x200,
// jumps over the setup header (Documentation/arch/x86/boot.rst) and never gets further.
inline std::string counting_kernel() {
  std::string kernel(16384, '\0');
  const auto put = [&](size_t at, std::string_view bytes) {
    kernel.replace(at, bytes.size(), bytes);
  };
  kernel[0x1f1] = 4;  // setup_sects
  put(0x1fe, "\x55\xaa");
  put(0x200, "\xeb\x7e");  // jmp 0x280
  put(0x202, "HdrS");
  put(0x206, std::string_view("\x0c\x02", 2));  // protocol 2.12
  kernel[0x211] = 1;                            // loadflags: LOADED_HIGH
  put(0x22c, "\xff\xff\xff\x37");               // initrd_addr_max
  std::copy(kCountingGuest.begin(), kCountingGuest.end(), kernel.begin() + 0x280);
  return kernel;
}

}  // namespace snow::testing
