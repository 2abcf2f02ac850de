// What every part of the VM layer works with: the settings, the services of this host, and where
// things lie. One per daemon; outlives everything that refers to it. The members are thread-safe.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "base/result.h"
#include "keeper/client.h"
#include "lazyfs/lazyfs.h"
#include "vm/admission.h"
#include "vm/console.h"
#include "vm/event_log.h"
#include "vm/fault.h"
#include "vm/host.h"
#include "vm/image_catalog.h"
#include "vm/network.h"
#include "vm/network_guard.h"
#include "vm/outbox.h"
#include "vm/overlay.h"
#include "vm/store.h"

namespace snow {

// Users for QEMUs: each live QEMU has its own, uid_base + slot.
class SlotPool {
 public:
  unsigned take();
  void claim(unsigned slot);  // from the record
  void give_back(unsigned slot);

 private:
  std::mutex mutex_;
  std::set<unsigned> taken_;
};

class Cluster;

struct Context {
  Settings settings;
  std::unique_ptr<Store> store;
  std::unique_ptr<Outbox> outbox;
  std::unique_ptr<Keeper> keeper;
  std::unique_ptr<LazyFs> lazyfs;
  std::unique_ptr<ConsoleHub> consoles;
  std::unique_ptr<ImageCatalog> images;
  std::unique_ptr<OverlayMaker> overlays;
  std::unique_ptr<Admission> admission;
  std::unique_ptr<NetworkGuard> network_guard;
  EventLog events;
  MacPool macs;
  SlotPool slots;
  Fault fault;
  // Set when the daemon stops in good order: objects let go of their files and processes instead of
  // removing them, since the VMs go on.
  std::atomic<bool> leaving = false;

  // Null: this host is in no cluster.
  [[nodiscard]] std::shared_ptr<Cluster> cluster() const {
    const std::lock_guard lock(cluster_mutex_);
    return cluster_;
  }
  void set_cluster(std::shared_ptr<Cluster> cluster) {
    const std::lock_guard lock(cluster_mutex_);
    cluster_.swap(cluster);
  }

  [[nodiscard]] std::string ram_dir() const { return settings.run_dir + "/ram"; }
  [[nodiscard]] std::string process_dir(const std::string& key) const {
    return settings.run_dir + "/p/" + key;
  }
  [[nodiscard]] std::string disk_dir() const { return settings.state_dir + "/disks"; }
  [[nodiscard]] std::string frozen_dir() const {
    return ram_dir() + "/frozen";
  }  // tmpfs: no sync waits for a disk
  [[nodiscard]] std::string result_dir() const { return settings.state_dir + "/results"; }
  [[nodiscard]] std::string snapshot_dir() const { return settings.state_dir + "/snapshots"; }
  [[nodiscard]] std::string boot_dir() const { return settings.state_dir + "/boot"; }
  // Of other hosts: what was fetched of their images, and their kernels by content.
  [[nodiscard]] std::string cache_dir() const { return settings.state_dir + "/cache"; }
  [[nodiscard]] std::string kernel_dir() const { return settings.state_dir + "/kernels"; }

 private:
  mutable std::mutex cluster_mutex_;
  std::shared_ptr<Cluster> cluster_;
};

}  // namespace snow
