#include "lazyfs/server.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <system_error>

#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

// Attributes and names never change unasked; the kernel keeps them until it is told otherwise.
constexpr uint64_t kForeverSeconds = uint64_t{1} << 30;

int stop_signal() { return SIGRTMIN + 6; }

void install_stop_signal() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_handler = [](int) {};  // without SA_RESTART: read(2) returns EINTR
    sigaction(stop_signal(), &action, nullptr);
  });
}

// A serving thread takes no signal of the program's, but the one that stops it.
void block_signals() {
  sigset_t set;
  sigfillset(&set);
  for (const int signal : {stop_signal(), SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
    sigdelset(&set, signal);
  }
  pthread_sigmask(SIG_SETMASK, &set, nullptr);
}

// Never written: the kernel's zero page, as an answer for unbound files.
const std::byte* zeros() {
  static const auto* memory = [] {
    void* pages = mmap(nullptr, kMaxReadBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? nullptr : static_cast<const std::byte*>(pages);
  }();
  return memory;
}

fuse_attr folder_attributes() {
  fuse_attr attr{};
  attr.ino = FUSE_ROOT_ID;
  attr.mode = S_IFDIR | 0755;
  attr.nlink = 2;
  attr.blksize = 4096;
  return attr;
}

fuse_attr file_attributes(const LazyFile& file) {
  fuse_attr attr{};
  attr.ino = file.number;
  attr.size = file.size;
  attr.blocks = (file.size + 511) / 512;
  attr.mode = S_IFREG | 0666;
  attr.nlink = 1;
  attr.blksize = 4096;
  return attr;
}

}  // namespace

class Server::Worker {
 public:
  explicit Worker(size_t slot) : slot_(slot) {}

  std::thread thread;
  std::unique_ptr<std::byte[]> buffer = std::make_unique_for_overwrite<std::byte[]>(kMaxReadBytes);

  [[nodiscard]] size_t slot() const { return slot_; }

  // Around Content::read. After a leave_content() that returns false the server may be gone.
  void enter_content() { state_.store(State::in_content, std::memory_order_release); }
  bool leave_content() {
    auto expected = State::in_content;
    return state_.compare_exchange_strong(expected, State::serving, std::memory_order_acq_rel);
  }
  bool abandon() {
    auto expected = State::in_content;
    return state_.compare_exchange_strong(expected, State::abandoned, std::memory_order_acq_rel);
  }
  void set_done() { state_.store(State::done, std::memory_order_release); }
  [[nodiscard]] bool done() const { return state_.load(std::memory_order_acquire) == State::done; }

 private:
  enum class State { serving, in_content, abandoned, done };

  const size_t slot_;
  std::atomic<State> state_ = State::serving;
};

struct Server::Request {
  fuse_in_header header;
  const std::byte* body;
  size_t body_bytes;

  // The fixed part of the body; zeros where an older kernel sends less.
  template <class T>
  [[nodiscard]] T in() const {
    T value{};
    std::memcpy(&value, body, std::min(sizeof value, body_bytes));
    return value;
  }
};

Result<void> Server::start(size_t threads) {
  install_stop_signal();
  if (zeros() == nullptr) return fail(Code::host_failed, "lazyfs: no address space");
  // Slots of the daemon before this one that hold unanswered requests need their threads, too.
  size_t count = std::clamp<size_t>(threads, 1, RequestTable::kSlots);
  for (size_t slot = count; slot < RequestTable::kSlots; ++slot) {
    if (table_.noted(slot)) count = slot + 1;
  }
  for (size_t i = 0; i < count; ++i) {
    if (!add_worker()) return fail(Code::host_failed, "lazyfs: threads cannot be started");
  }
  return {};
}

void Server::stop() {
  stopping_ = true;
  std::vector<std::shared_ptr<Worker>> workers;
  {
    const std::lock_guard lock(mutex_);
    workers.swap(workers_);
  }
  for (const auto& worker : workers) {
    // The signal may come just before the thread enters read(2): it is sent until it has worked.
    while (!worker->done() && !worker->abandon()) {
      pthread_kill(worker->thread.native_handle(), stop_signal());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (worker->done()) {
      worker->thread.join();
    } else {
      worker->thread.detach();
    }
  }
}

bool Server::add_worker() {
  const std::lock_guard lock(mutex_);
  if (stopping_) return false;
  if (workers_.size() == RequestTable::kSlots) return false;
  auto worker = std::make_shared<Worker>(workers_.size());
  idle_.fetch_add(1);
  try {
    worker->thread = std::thread([this, worker] { run(*worker); });
  } catch (const std::system_error& error) {
    idle_.fetch_sub(1);
    log_failure(fmt::format("lazyfs: no further thread: {}", error.what()));
    return false;
  }
  workers_.push_back(std::move(worker));
  return true;
}

void Server::run(Worker& worker) {
  block_signals();
  const auto slot = table_.slot(worker.slot());
  // What a killed daemon left in this slot comes first.
  if (table_.noted(worker.slot()) && !handle(worker)) return;
  table_.clear(worker.slot());
  while (!stopping_) {
    if (::read(device_.fd(), slot.data(), slot.size()) >= 0) {
      if (!handle(worker)) return;
      continue;
    }
    if (errno == ENODEV) break;  // unmounted, and nobody has a file open
    // ENOENT: the request was interrupted while the kernel copied it.
    if (errno == EINTR || errno == EAGAIN || errno == ENOENT) continue;
    log_error("lazyfs: reading /dev/fuse: {}; a thread gives up", strerror(errno));
    break;
  }
  worker.set_done();
}

// Answers the request in the worker's slot. False: the server may be gone.
bool Server::handle(Worker& worker) {
  const auto header = table_.noted(worker.slot());
  if (!header) return true;
  if (idle_.fetch_sub(1) == 1) add_worker();
  const Request request = {*header, table_.slot(worker.slot()).data() + sizeof *header,
                           header->len - sizeof *header};
  if (header->opcode == FUSE_READ) {
    if (!read_file(worker, request)) return false;
  } else if (header->opcode == FUSE_READDIR) {
    read_folder(worker, request);
  } else {
    dispatch(request);
  }
  table_.clear(worker.slot());
  idle_.fetch_add(1);
  return true;
}

bool Server::read_file(Worker& worker, const Request& request) {
  const int64_t start_ns = monotonic_ns();
  const uint64_t unique = request.header.unique;
  const auto in = request.in<fuse_read_in>();
  const auto file = files_.find(request.header.nodeid);
  if (!file) {
    log_failure(fmt::format("lazyfs: read of file {:x}, which this daemon does not have",
                            request.header.nodeid));
    device_.answer_error(unique, EIO);
    return true;
  }
  const uint64_t left = in.offset < file->size ? file->size - in.offset : 0;
  const size_t size = std::min<uint64_t>({in.size, left, kMaxReadBytes});
  const std::byte* data = zeros();
  Content* const content = file->content();
  ++file->waiting;
  if (content != nullptr && size != 0) {
    data = worker.buffer.get();
    Result<void> result;
    worker.enter_content();
    try {
      result = content->read(in.offset, {worker.buffer.get(), size});
    } catch (const std::exception& error) {
      result = fail(Code::internal, "exception: {}", error.what());
    }
    if (!worker.leave_content()) {
      --file->waiting;
      return false;
    }
    if (!result) {
      --file->waiting;
      log_failure(fmt::format("lazyfs: file {:x}, {} bytes at {}: {}", file->number, size,
                              in.offset, result.error().message));
      device_.answer_error(unique, EIO);
      return true;
    }
  }
  // Counted first: who has the answer sees it in the statistics.
  --file->waiting;
  file->count_read(size, content == nullptr, static_cast<uint64_t>(monotonic_ns() - start_ns));
  device_.answer(unique, data, size);
  return true;
}

void Server::dispatch(const Request& request) {
  const uint64_t unique = request.header.unique;
  switch (request.header.opcode) {
    case FUSE_LOOKUP:
      return look_up(request);
    case FUSE_GETATTR:
      return get_attributes(request);
    case FUSE_FORGET:
      return forget(request.header.nodeid, request.in<fuse_forget_in>().nlookup);
    case FUSE_BATCH_FORGET: {
      const auto count = request.in<fuse_batch_forget_in>().count;
      const std::byte* at = request.body + sizeof(fuse_batch_forget_in);
      const std::byte* const end = request.body + request.body_bytes;
      fuse_forget_one one;
      for (uint32_t i = 0; i < count && at + sizeof one <= end; ++i, at += sizeof one) {
        std::memcpy(&one, at, sizeof one);
        forget(one.nodeid, one.nlookup);
      }
      return;
    }
    case FUSE_OPENDIR: {
      const fuse_open_out out{};
      device_.answer(unique, &out, sizeof out);
      return;
    }
    case FUSE_STATFS: {
      fuse_statfs_out out{};
      out.st.bsize = out.st.frsize = 4096;
      out.st.namelen = 255;
      device_.answer(unique, &out, sizeof out);
      return;
    }
    case FUSE_FALLOCATE:
      return allocate(request);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_DESTROY:
      device_.answer_error(unique, 0);
      return;
    case FUSE_WRITE:
      return refuse_write(request);
    case FUSE_SETATTR:
    case FUSE_CREATE:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_LINK:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR:
      device_.answer_error(unique, EROFS);
      return;
    default:
      // The kernel takes ENOSYS as "does it by itself, never ask again" for, among others: OPEN
      // (files then keep their cache), FLUSH, FSYNC, ACCESS, STATX, LSEEK, INTERRUPT.
      device_.answer_error(unique, ENOSYS);
  }
}

void Server::look_up(const Request& request) {
  const auto* name = reinterpret_cast<const char*>(request.body);
  const auto number = number_of_name({name, strnlen(name, request.body_bytes)});
  const auto file =
      number && request.header.nodeid == FUSE_ROOT_ID ? files_.look_up(*number) : nullptr;
  if (!file) {
    device_.answer_error(request.header.unique, ENOENT);
    return;
  }
  fuse_entry_out out{};
  out.nodeid = file->number;
  out.entry_valid = out.attr_valid = kForeverSeconds;
  out.attr = file_attributes(*file);
  if (device_.answer(request.header.unique, &out, sizeof out) != 0) forget(file->number, 1);
}

void Server::get_attributes(const Request& request) {
  fuse_attr_out out{};
  out.attr_valid = kForeverSeconds;
  if (request.header.nodeid == FUSE_ROOT_ID) {
    out.attr = folder_attributes();
  } else if (const auto file = files_.find(request.header.nodeid)) {
    out.attr = file_attributes(*file);
  } else {
    device_.answer_error(request.header.unique, ENOENT);
    return;
  }
  device_.answer(request.header.unique, &out, sizeof out);
}

// A place in the folder is the number of the file before it. "." and ".." are left out, as POSIX
// allows: they have no number.
void Server::read_folder(Worker& worker, const Request& request) {
  const auto in = request.in<fuse_read_in>();
  const size_t room = std::min<size_t>(in.size, kMaxReadBytes);
  size_t used = 0;
  for (const uint64_t number : files_.list(in.offset, room / FUSE_NAME_OFFSET)) {
    const std::string name = file_name(number);
    const size_t entry_bytes = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name.size());
    if (used + entry_bytes > room) break;
    fuse_dirent entry{};
    entry.ino = entry.off = number;
    entry.namelen = static_cast<uint32_t>(name.size());
    entry.type = S_IFREG >> 12;
    std::byte* const at = worker.buffer.get() + used;
    std::memset(at, 0, entry_bytes);
    std::memcpy(at, &entry, FUSE_NAME_OFFSET);
    std::memcpy(at + FUSE_NAME_OFFSET, name.data(), name.size());
    used += entry_bytes;
  }
  device_.answer(request.header.unique, worker.buffer.get(), used);
}

// QEMU's balloon punches holes: the private pages go away by madvise, here there is nothing to do.
// Anything else could change the size that the kernel believes in.
void Server::allocate(const Request& request) {
  const auto in = request.in<fuse_fallocate_in>();
  const bool hole = in.mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  device_.answer_error(request.header.unique, hole ? 0 : EROFS);
}

// A write(2) leaves no trace. What was written through a shared mapping is in the page cache that
// all VMs share: no lawful user does that, and the kernel has no way to forbid it to someone who
// may open the file for writing, as QEMU must. So it is told and dropped when it is written back.
void Server::refuse_write(const Request& request) {
  const auto in = request.in<fuse_write_in>();
  const auto file = files_.find(request.header.nodeid);
  device_.answer_error(request.header.unique, EROFS);
  if (!file || (in.write_flags & FUSE_WRITE_CACHE) == 0) return;
  log_failure(
      fmt::format("lazyfs: file {:x}: {} bytes at {} were written through a shared mapping; "
                  "its cached pages are dropped",
                  file->number, in.size, in.offset));
  if (file->spoilt.exchange(true)) return;
  notifier_.post([file](Device& device) {
    file->spoilt = false;
    return device.invalidate_pages(file->number);
  });
}

void Server::forget(uint64_t number, uint64_t lookups) {
  const auto file = files_.find(number);
  if (!file || !FileTable::forget(*file, static_cast<int64_t>(lookups))) return;
  if (file->inherited && device_.is_known(number)) return;
  files_.drop(file);
}

// At most one line per second.
void Server::log_failure(const std::string& text) {
  const int64_t now_ns = monotonic_ns();
  int64_t last_ns = last_failure_ns_;
  if ((last_ns != 0 && now_ns - last_ns < 1'000'000'000) ||
      !last_failure_ns_.compare_exchange_strong(last_ns, now_ns)) {
    ++silent_failures_;
    return;
  }
  const uint64_t silent = silent_failures_.exchange(0);
  if (silent == 0) return log_error("{}", text);
  log_error("{} ({} further failures were not logged)", text, silent);
}

}  // namespace snow
