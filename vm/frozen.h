// A frozen machine: machine state, memory image and disk image, immutable, shown in lazyfs. Fork,
// checkpoint and snapshot all make one; every VM that was thawed from it holds it.
//
// freeze() copies no memory: what the stopped QEMU wrote stays in that process (kept readable by
// the keeper) until settle() has copied it into a layer file and the process is let go. The record
// names the process until then and the files afterwards, so that a daemon that was killed in
// between finds everything again. docs/fork.md tells the order of these steps.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "image/image.h"
#include "qemu/machine.h"
#include "vm/context.h"
#include "vm/qemu_process.h"

namespace snow {

// How long each step took, in milliseconds, in the order in which they were done.
using Steps = std::vector<std::pair<std::string, double>>;

// Layer files by path, opened once however many images show them. Not thread-safe.
using OpenLayers = std::map<std::string, std::weak_ptr<Layer>>;

class Frozen {
 public:
  // The guest of `old` must stand still. Saves its state, builds the next images over those that it
  // runs on (`over`: null at a first boot, whose disk is `old.ground().disk`), and binds `memory`
  // and `disk` to them. On failure `old` can go on as if nothing had happened. On success it can as
  // well as long as the result is taken back with abandon().
  static Result<std::shared_ptr<Frozen>> freeze(Context& context,
                                                const std::shared_ptr<QemuProcess>& old,
                                                const std::shared_ptr<Frozen>& over,
                                                const std::shared_ptr<LazyFile>& memory,
                                                const std::shared_ptr<LazyFile>& disk,
                                                Steps& steps);
  void abandon();

  // The same images under other lazyfs files (for shells that were started before); both unbound.
  static Result<std::shared_ptr<Frozen>> alias(Context& context, const Frozen& of,
                                               const std::shared_ptr<LazyFile>& memory,
                                               const std::shared_ptr<LazyFile>& disk);

  // A machine that another host froze: its images are layers that are fetched from there.
  struct Remote {
    MachineConfig config;
    std::vector<std::byte> state;
    std::shared_ptr<BootFiles> boot;
    std::shared_ptr<Layer> memory_layer, disk_layer;  // disk: null if it has none
  };
  static Result<std::shared_ptr<Frozen>> remote(Context& context, Remote from,
                                                const std::shared_ptr<LazyFile>& memory,
                                                const std::shared_ptr<LazyFile>& disk);

  // Under which ids other hosts fetch its images (hex; empty: nobody does). On record when it
  // returns. `withdraw` is called when the machine goes, and not when the daemon leaves.
  struct Offered {
    std::string memory, disk;
    std::function<void()> withdraw = {};
  };
  Result<void> note_offered(Offered offered);
  [[nodiscard]] const Offered& offered() const { return offered_; }
  // The file behind an id that it is offered under.
  [[nodiscard]] const std::shared_ptr<LazyFile>& offered_as(const std::string& image) const {
    return image == offered_.memory ? ground_.memory : ground_.disk;
  }

  // A snapshot's folder as a frozen machine.
  static Result<std::shared_ptr<Frozen>> open_snapshot(Context& context, const std::string& name);
  // Writes this machine as a snapshot's files into `folder` (made by the caller).
  Result<void> write_snapshot(const std::string& folder) const;

  ~Frozen();
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;

  [[nodiscard]] const std::string& id() const { return id_; }
  [[nodiscard]] const MachineConfig& config() const { return config_; }
  [[nodiscard]] const std::vector<std::byte>& state() const { return state_; }
  [[nodiscard]] const Ground& ground() const { return ground_; }
  [[nodiscard]] const std::string& snapshot() const { return snapshot_; }
  [[nodiscard]] std::shared_ptr<Image> memory_image() const { return ground_.memory->image(); }
  [[nodiscard]] bool settled() const { return settled_; }
  [[nodiscard]] pid_t held_pid() const { return source_ ? source_->pid() : 0; }
  [[nodiscard]] uint64_t delta_bytes() const { return delta_bytes_; }

  // Writes what the next daemon needs to find this again. Called in the pause: small.
  Result<void> record() { return record(settled_); }

  // Copies the delta out of the stopped process, records the images by their files, lets the
  // process and the earlier machine go, and merges layers where the stack has grown. Once, on one
  // thread; after a failure (disk full) it may be called again. `between` as for
  // DeltaLayer::copy_out.
  Result<void> settle(const std::function<bool()>& between,
                      const std::function<bool(const Layer&)>& is_private);

  // From the record, in the order of "sequence". What several machines share comes from these:
  // earlier machines by id, disks of images by lazyfs number, boot files; layers that are open
  // already.
  struct Finders {
    std::function<std::shared_ptr<Frozen>(const std::string&)> frozen;
    std::function<std::shared_ptr<LazyFile>(uint64_t)> image_disk;
    std::function<std::shared_ptr<BootFiles>(const nlohmann::json&)> boot_files;
    // Of an image of another host, by its cache file.
    std::function<Result<std::shared_ptr<Layer>>(const std::string&)> remote_layer;
    OpenLayers* layers;
  };
  static Result<std::shared_ptr<Frozen>> restore(Context& context, const nlohmann::json& record,
                                                 const Finders& finders);

 private:
  Frozen(Context& context, std::string id, const MachineConfig& config)
      : context_(context), id_(std::move(id)), config_(config), sequence_(wall_clock_ns()) {}

  // The images of a stopped QEMU over the ones below; freeze() and restore() share these.
  Result<std::shared_ptr<Image>> build_memory();
  Result<std::shared_ptr<Image>> build_disk();
  [[nodiscard]] std::string state_path() const;
  [[nodiscard]] std::string map_path() const;
  Result<void> write_map() const;
  Result<void> merge(const std::function<bool(const Layer&)>& is_private);
  Result<void> record(bool settled);

  Context& context_;
  const std::string id_;
  const MachineConfig config_;
  int64_t sequence_;  // rises from one machine to those made over it
  std::vector<std::byte> state_;
  Ground ground_;
  std::string snapshot_;  // its name, if it is one
  // Until settled: where the bytes still are.
  std::shared_ptr<QemuProcess> source_;  // the stopped QEMU
  std::shared_ptr<Frozen> over_;         // what it ran on; null: a first boot
  std::shared_ptr<DeltaLayer> delta_;    // null: nothing was written, or a first boot
  std::shared_ptr<FileLayer> ram_;       // a first boot's RAM file
  std::shared_ptr<FileLayer> overlay_;   // its disk overlay
  uint64_t delta_bytes_ = 0;
  Offered offered_;
  std::atomic<bool> settled_ = false;
  std::mutex record_mutex_;  // the record itself: it is written by the settler, and when offered
  bool settled_on_record_ = false;
  bool recorded_ = false;
};

}  // namespace snow
