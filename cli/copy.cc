// snow cp: one file through the API's file operations, folders (-r) as a tar stream through a
// program in the guest.
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "base/file.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/relay.h"

extern char** environ;

namespace snow::cli {
namespace {

struct Place {
  std::string vm;  // empty: local
  std::string path;
};

// "VM:/path" is in a VM; everything else, also "./a:b" and "/a:b", is local.
Place place_of(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos || colon == 0 || text.find('/') < colon) return {"", text};
  return {text.substr(0, colon), text.substr(colon + 1)};
}

std::string base_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

std::string file_url(const Place& place) {
  return "/vms/" + escape(place.vm) + "/file?path=" + escape(place.path);
}

Result<int> download_file(const Client& client, const Place& from, std::string to) {
  const auto write_to = [&](int fd) {
    const Progress progress(fmt::format("copying '{}'", from.path));
    return client.download(file_url(from), [&](std::string_view piece) {
      return write_all(fd, std::as_bytes(std::span(piece)), to);
    });
  };
  if (to == "-") {
    SNOW_TRY(write_to(STDOUT_FILENO));
    return 0;
  }
  if (std::filesystem::is_directory(to))
    to = (std::filesystem::path(to) / base_name(from.path)).string();
  // Beside its place first: a copy that breaks off leaves what was there.
  const std::string beside = fmt::format("{}.{}.snow", to, random_hex(4));
  const Fd fd(::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd) return fail_errno(Code::host_failed, "file '{}': cannot create", to);
  auto done = write_to(fd.get());
  if (done && ::rename(beside.c_str(), to.c_str()) < 0) {
    done = fail_errno(Code::host_failed, "file '{}': cannot create", to);
  }
  if (!done) {
    ::unlink(beside.c_str());
    return tl::unexpected<Error>(done.error());
  }
  return 0;
}

Result<int> upload_file(const Client& client, const std::string& from, Place to) {
  const Progress progress(fmt::format("copying '{}'", from));
  if (from == "-") {
    SNOW_TRY(client.upload(file_url(to), STDIN_FILENO, "standard input"));
    return 0;
  }
  const Fd fd(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return fail_errno(errno == ENOENT ? Code::not_found : Code::host_failed,
                      "file '{}': cannot open", from);
  }
  struct stat status {};
  ::fstat(fd.get(), &status);
  if (S_ISDIR(status.st_mode)) {
    return fail(Code::usage, "file '{}': is a folder; `snow cp -r` copies folders", from);
  }
  if (to.path.ends_with('/')) to.path += base_name(from);
  SNOW_TRY(client.upload(file_url(to) + fmt::format("&mode={:o}", status.st_mode & 07777), fd.get(),
                         from));
  return 0;
}

// tar of this host with one end of a pipe; waited for by finish() or the destructor.
class LocalTar {
 public:
  static Result<std::unique_ptr<LocalTar>> start(std::vector<std::string> argv, bool reads) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0) return fail_errno(Code::host_failed, "pipe");
    Fd theirs(reads ? ends[0] : ends[1]);
    auto tar = std::make_unique<LocalTar>();
    tar->pipe.reset(reads ? ends[1] : ends[0]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, theirs.get(), reads ? 0 : 1);
    std::vector<char*> words;
    for (std::string& word : argv) words.push_back(word.data());
    words.push_back(nullptr);
    const int error =
        ::posix_spawnp(&tar->pid_, words[0], &actions, nullptr, words.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
      tar->pid_ = 0;
      return fail(Code::host_failed, "tar: cannot start: {}; install it here", strerror(error));
    }
    return tar;
  }
  ~LocalTar() { finish(); }
  // Closes our end and waits; the exit code.
  int finish() {
    pipe.reset();
    int status = 0;
    if (pid_ == 0) return 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  }
  Fd pipe;

 private:
  pid_t pid_ = 0;
};

Result<int> check_tars(const std::string& vm, int guest_code, int local_code) {
  if (guest_code == 126 || guest_code == 127) {
    return fail(Code::guest_failed,
                "VM '{}': the guest has no `tar` (or no shell), which copies folders there; "
                "install it in the guest, or copy file by file",
                vm);
  }
  if (guest_code != 0) {
    return fail(Code::guest_failed, "VM '{}': tar in the guest ended with {}", vm, guest_code);
  }
  if (local_code != 0) return fail(Code::host_failed, "tar ended with {}", local_code);
  return 0;
}

Result<int> download_folder(const Client& client, const Place& from, const std::string& to) {
  std::error_code error;
  std::filesystem::create_directories(to, error);
  if (error) {
    return fail(Code::host_failed, "folder '{}': cannot create: {}", to, error.message());
  }
  SNOW_ASSIGN(auto stream, client.upgrade("/vms/" + escape(from.vm) + "/exec",
                                          {{"argv", {"tar", "-C", from.path, "-cf", "-", "."}}}));
  SNOW_ASSIGN(auto tar, LocalTar::start({"tar", "-C", to, "--no-same-owner", "-xf", "-"}, true));
  Relay how;
  how.output = tar->pipe.get();
  const auto guest_code = relay(std::move(stream), how);
  const int local_code = tar->finish();
  if (!guest_code) return guest_code;
  return check_tars(from.vm, *guest_code, *guest_code == 0 ? local_code : 0);
}

Result<int> upload_folder(const Client& client, const std::string& from, const Place& to) {
  if (!std::filesystem::is_directory(from)) {
    return fail(Code::not_found, "folder '{}': no such folder", from);
  }
  SNOW_ASSIGN(
      auto stream,
      client.upgrade(
          "/vms/" + escape(to.vm) + "/exec",
          {{"argv",
            {"sh", "-c", "mkdir -p -- \"$1\" && exec tar -C \"$1\" -xf -", "sh", to.path}}}));
  SNOW_ASSIGN(auto tar, LocalTar::start({"tar", "-C", from, "-cf", "-", "."}, false));
  Relay how;
  how.input = tar->pipe.get();
  const auto guest_code = relay(std::move(stream), how);
  if (!guest_code) return guest_code;
  return check_tars(to.vm, *guest_code, *guest_code == 0 ? tar->finish() : 0);
}

}  // namespace

Result<int> copy(const Options& options) {
  const Place from = place_of(options.source);
  const Place to = place_of(options.destination);
  if (from.vm.empty() == to.vm.empty()) {
    return fail(Code::usage, "cp: one of the two must be VM:PATH, the other a path here or -");
  }
  const Place& remote = from.vm.empty() ? to : from;
  if (remote.path.empty() || remote.path[0] != '/') {
    return fail(Code::usage, "cp: '{}': a path in a VM is absolute, as in {}:/etc/hosts",
                remote.path, remote.vm);
  }
  const Client client(options.socket);
  if (options.recursive) {
    ::signal(SIGPIPE, SIG_IGN);  // a tar that ends early is told by its exit code
    return from.vm.empty() ? upload_folder(client, from.path, to)
                           : download_folder(client, from, to.path);
  }
  return from.vm.empty() ? upload_file(client, from.path, to)
                         : download_file(client, from, to.path);
}

}  // namespace snow::cli
