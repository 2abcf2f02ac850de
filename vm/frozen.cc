#include "vm/frozen.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "image/qcow2.h"
#include "qemu/private_pages.h"

namespace snow {
namespace {

constexpr size_t kLayerLimit = 8;              // more are merged
constexpr size_t kCopyStep = size_t{4} << 20;  // bytes between two calls of `between`

void timed(Steps& steps, const char* name, int64_t since_ns) {
  steps.emplace_back(name, static_cast<double>(monotonic_ns() - since_ns) / 1e6);
}

std::vector<Extent> extents_of(const std::vector<Range>& ranges) {
  std::vector<Extent> extents;
  extents.reserve(ranges.size());
  for (const Range& range : ranges)
    extents.push_back({range.offset, range.length, 0, range.offset});
  return extents;
}

}  // namespace

std::string Frozen::state_path() const { return context_.frozen_dir() + "/" + id_ + ".state"; }
std::string Frozen::map_path() const { return context_.frozen_dir() + "/" + id_ + ".map"; }

Result<std::shared_ptr<Image>> Frozen::build_memory() {
  const auto& base = source_->ground().memory;
  if (!base) {
    SNOW_ASSIGN(ram_, FileLayer::open(source_->ram_path(), true));
    // Shown as one piece: its holes read as zeros all the same, and finding them would cost some
    // 20 ms per GiB in the middle of a pause.
    const Range all{0, config_.memory_bytes};
    struct stat status {};
    if (::stat(source_->ram_path().c_str(), &status) == 0) {
      delta_bytes_ = static_cast<uint64_t>(status.st_blocks) * 512;
    }
    const Image nothing(config_.memory_bytes, {}, ExtentMap());
    return nothing.with_layer(ram_, extents_of({all}));
  }
  SNOW_TRY(context_.keeper->hold(source_->pid()));
  SNOW_ASSIGN(const PrivatePages pages,
              find_private_pages(source_->pid(), base->number(), config_.memory_bytes));
  delta_bytes_ = pages.bytes();
  if (pages.ranges.empty()) return base->image();
  delta_ = std::make_shared<DeltaLayer>(source_->pid(), pages.address, pages.ranges,
                                        context_.ram_dir() + "/" + id_ + ".delta");
  return base->image()->with_layer(delta_, extents_of(pages.ranges));
}

Result<std::shared_ptr<Image>> Frozen::build_disk() {
  const auto& base = source_->ground().disk;
  SNOW_ASSIGN(overlay_, FileLayer::open(source_->overlay_path(), true));
  auto made = [&]() -> Result<std::shared_ptr<Image>> {
    const Fd fd(::open(source_->overlay_path().c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return fail_errno(Code::host_failed, "{}: cannot open", source_->overlay_path());
    SNOW_ASSIGN(const Qcow2Map map,
                read_qcow2_map(fd.get(), source_->overlay_path(), base->size()));
    if (map.virtual_size != base->size()) {
      return fail(Code::corrupt, "{}: {} bytes, its image has {}", source_->overlay_path(),
                  map.virtual_size, base->size());
    }
    return base->image()->with_layer(overlay_, map.extents);
  }();
  if (!made) overlay_->keep();
  return made;
}

Result<std::shared_ptr<Frozen>> Frozen::freeze(
    Context& context, const std::shared_ptr<QemuProcess>& old, const std::shared_ptr<Frozen>& over,
    const std::shared_ptr<LazyFile>& memory, const std::shared_ptr<LazyFile>& disk, Steps& steps) {
  std::shared_ptr<Frozen> frozen(new Frozen(context, random_hex(8), old->config()));
  frozen->source_ = old;
  frozen->over_ = over;
  frozen->ground_ = {memory, disk, old->ground().boot};
  int64_t since = monotonic_ns();
  SNOW_ASSIGN(frozen->state_, old->save_state());
  timed(steps, "save", since);
  since = monotonic_ns();
  auto bound = [&]() -> Result<void> {
    SNOW_ASSIGN(auto memory_image, frozen->build_memory());
    timed(steps, "scan", since);
    since = monotonic_ns();
    SNOW_TRY(memory->bind(std::move(memory_image)));
    if (disk) {
      SNOW_ASSIGN(auto disk_image, frozen->build_disk());
      SNOW_TRY(disk->bind(std::move(disk_image)));
    }
    return {};
  }();
  if (bound) bound = frozen->record();
  if (!bound) {
    frozen->abandon();
    return tl::unexpected<Error>(bound.error());
  }
  timed(steps, "bind", since);
  return frozen;
}

void Frozen::abandon() {
  // The old QEMU goes on writing to its files: they are not layers after all.
  if (ram_) ram_->keep();
  if (overlay_) overlay_->keep();
  if (source_ && source_->ground().memory) (void)context_.keeper->let_go(source_->pid());
  source_.reset();
}

Result<std::shared_ptr<Frozen>> Frozen::alias(Context& context, const Frozen& of,
                                              const std::shared_ptr<LazyFile>& memory,
                                              const std::shared_ptr<LazyFile>& disk) {
  std::shared_ptr<Frozen> frozen(new Frozen(context, random_hex(8), of.config_));
  frozen->state_ = of.state_;
  frozen->ground_ = {memory, disk, of.ground_.boot};
  SNOW_TRY(memory->bind(of.ground_.memory->image()));
  if (disk) SNOW_TRY(disk->bind(of.ground_.disk->image()));
  SNOW_TRY(frozen->write_map());
  frozen->settled_ = true;
  SNOW_TRY(frozen->record());
  return frozen;
}

Result<std::shared_ptr<Frozen>> Frozen::remote(Context& context, Remote from,
                                               const std::shared_ptr<LazyFile>& memory,
                                               const std::shared_ptr<LazyFile>& disk) {
  std::shared_ptr<Frozen> frozen(new Frozen(context, random_hex(8), from.config));
  frozen->state_ = std::move(from.state);
  frozen->ground_ = {memory, disk, std::move(from.boot)};
  const auto show = [](const std::shared_ptr<LazyFile>& file,
                       std::shared_ptr<Layer> layer) -> Result<void> {
    const Image nothing(file->size(), {}, ExtentMap());
    return file->bind(nothing.with_layer(std::move(layer), extents_of({{0, file->size()}})));
  };
  SNOW_TRY(show(memory, std::move(from.memory_layer)));
  if (disk) SNOW_TRY(show(disk, std::move(from.disk_layer)));
  SNOW_TRY(frozen->write_map());
  frozen->settled_ = true;
  SNOW_TRY(frozen->record());
  return frozen;
}

Result<void> Frozen::note_offered(Offered offered) {
  offered_ = std::move(offered);
  return record();
}

Frozen::~Frozen() {
  const bool leaving = context_.leaving;
  for (const auto& file : {ground_.memory, ground_.disk}) {
    if (!leaving || !file || !file->image()) continue;
    for (const auto& layer : file->image()->layers()) layer->keep();
  }
  if (leaving) return;
  if (offered_.withdraw) offered_.withdraw();
  if (recorded_) {
    if (auto removed = context_.store->remove("frozen", id_); !removed) {
      log_warn("frozen machine {}: {}", id_, removed.error().message);
    }
  }
  ::unlink(state_path().c_str());
  ::unlink(map_path().c_str());
}

Result<void> Frozen::record(bool settled) {
  const std::lock_guard lock(record_mutex_);
  settled = settled_on_record_ = settled || settled_on_record_;
  nlohmann::json json = {{"id", id_},
                         {"config", to_json(config_)},
                         {"snapshot", snapshot_},
                         {"sequence", sequence_},
                         {"memory", ground_.memory->number()},
                         {"disk", ground_.disk ? ground_.disk->number() : 0},
                         {"disk_size", ground_.disk ? ground_.disk->size() : 0},
                         {"boot", ground_.boot->to_json()},
                         {"delta_bytes", delta_bytes_},
                         {"offered", {offered_.memory, offered_.disk}},
                         {"settled", settled}};
  if (!settled) {
    json["source"] = source_->to_json();
    json["over"] = over_ ? over_->id() : "";
  }
  if (snapshot_.empty() && !recorded_) {
    SNOW_TRY(write_file(
        state_path(), std::string_view(reinterpret_cast<const char*>(state_.data()), state_.size()),
        0600));
  }
  SNOW_TRY(context_.store->put("frozen", id_, json));
  recorded_ = true;
  return {};
}

Result<void> Frozen::write_map() const {
  nlohmann::json json;
  SNOW_ASSIGN(json["memory"], ground_.memory->image()->to_json());
  if (ground_.disk) {
    SNOW_ASSIGN(json["disk"], ground_.disk->image()->to_json());
  }
  return write_file(map_path(), json.dump(), 0600);
}

Result<void> Frozen::settle(const std::function<bool()>& between,
                            const std::function<bool(const Layer&)>& is_private) {
  if (source_) {
    if (delta_ && !delta_->copied()) SNOW_TRY(delta_->copy_out(kCopyStep, between));
    SNOW_TRY(write_map());
    const pid_t source = source_->pid();
    context_.fault.at("copied", {{"old", source}});
    SNOW_TRY(record(true));
    settled_ = true;
    source_->give_away_overlay();
    source_->give_away_ram();
    context_.fault.at("settled", {{"old", source}});
    source_.reset();
    over_.reset();
    delta_.reset();
    ram_.reset();
    overlay_.reset();
  }
  return merge(is_private);
}

// After the earlier machine was let go: what that alone shared with this one is private now.
Result<void> Frozen::merge(const std::function<bool(const Layer&)>& is_private) {
  const auto merge_one = [&](const std::shared_ptr<LazyFile>& file,
                             const std::string& folder) -> Result<void> {
    if (!file) return {};
    std::vector<std::shared_ptr<Layer>> replaced;  // their files stay until the map is written
    SNOW_ASSIGN(const bool merged,
                file->image()->merge_layers(kLayerLimit, folder + "/" + id_ + ".merged", is_private,
                                            &replaced));
    if (!merged) return {};
    auto written = write_map();
    if (!written) {  // the map that is there still names them
      for (const auto& layer : replaced) layer->keep();
    }
    return written;
  };
  SNOW_TRY(merge_one(ground_.memory, context_.ram_dir()));
  return merge_one(ground_.disk, context_.disk_dir());
}

Result<std::shared_ptr<Frozen>> Frozen::restore(Context& context, const nlohmann::json& record,
                                                const Finders& finders) {
  SNOW_ASSIGN(const MachineConfig config, machine_config_from_json(record.at("config")));
  std::shared_ptr<Frozen> frozen(new Frozen(context, record.at("id").get<std::string>(), config));
  frozen->recorded_ = true;
  frozen->sequence_ = record.at("sequence").get<int64_t>();
  frozen->snapshot_ = record.at("snapshot").get<std::string>();
  frozen->delta_bytes_ = record.at("delta_bytes").get<uint64_t>();
  if (record.contains("offered")) {
    frozen->offered_ = {record["offered"].at(0), record["offered"].at(1)};
  }
  frozen->ground_.boot = finders.boot_files(record.at("boot"));
  const auto memory_number = record.at("memory").get<uint64_t>();
  const auto disk_number = record.at("disk").get<uint64_t>();
  const auto disk_size = record.at("disk_size").get<uint64_t>();
  const std::string snapshot_folder = context.snapshot_dir() + "/" + frozen->snapshot_;
  SNOW_ASSIGN(
      const std::string state,
      read_file(frozen->snapshot_.empty() ? frozen->state_path() : snapshot_folder + "/state"));
  const auto* bytes = reinterpret_cast<const std::byte*>(state.data());
  frozen->state_.assign(bytes, bytes + state.size());

  std::shared_ptr<Image> memory;
  std::shared_ptr<Image> disk;
  frozen->settled_ = record.at("settled").get<bool>();
  if (!frozen->snapshot_.empty()) {
    SNOW_ASSIGN(memory, Image::of_file(snapshot_folder + "/memory", config.memory_bytes, false));
    if (disk_number != 0) {
      SNOW_ASSIGN(disk, Image::of_file(snapshot_folder + "/disk.raw", disk_size, false));
    }
  } else if (frozen->settled_) {
    SNOW_ASSIGN(const std::string text, read_file(frozen->map_path(), size_t{1} << 30));
    const auto map = nlohmann::json::parse(text, nullptr, false);
    if (!map.is_object() || !map.contains("memory")) {
      return fail(Code::corrupt, "{}: not the map of a frozen machine", frozen->map_path());
    }
    const auto open_layer = [&](const std::string& path) -> Result<std::shared_ptr<Layer>> {
      if (auto open = (*finders.layers)[path].lock()) return open;
      if (path.starts_with(context.cache_dir() + "/")) {
        SNOW_ASSIGN(std::shared_ptr<Layer> layer, finders.remote_layer(path));
        (*finders.layers)[path] = layer;
        return layer;
      }
      const bool owned =
          path.starts_with(context.ram_dir()) || path.starts_with(context.disk_dir());
      SNOW_ASSIGN(std::shared_ptr<Layer> layer, FileLayer::open(path, owned));
      (*finders.layers)[path] = layer;
      return layer;
    };
    SNOW_ASSIGN(memory, Image::from_json(map.at("memory"), open_layer));
    if (disk_number != 0) {
      SNOW_ASSIGN(disk, Image::from_json(map.at("disk"), open_layer));
    }
  } else {
    const std::string over = record.at("over").get<std::string>();
    if (!over.empty()) {
      frozen->over_ = finders.frozen(over);
      if (!frozen->over_) {
        return fail(Code::corrupt, "the frozen machine {} that it was made over is lost", over);
      }
    }
    const auto& source = record.at("source");
    Ground ground{nullptr, nullptr, frozen->ground_.boot};
    if (frozen->over_) {
      ground = frozen->over_->ground();
    } else if (disk_number != 0) {
      ground.disk = finders.image_disk(source.at("disk").get<uint64_t>());
      if (!ground.disk) return fail(Code::corrupt, "the image of its disk is lost");
    }
    SNOW_ASSIGN(frozen->source_, QemuProcess::adopt(context, source, config, ground, false));
    SNOW_ASSIGN(memory, frozen->build_memory());
    if (disk_number != 0) {
      SNOW_ASSIGN(disk, frozen->build_disk());
    }
  }
  SNOW_ASSIGN(frozen->ground_.memory,
              LazyFile::restore(context, memory_number, config.memory_bytes, std::move(memory)));
  if (disk_number != 0) {
    SNOW_ASSIGN(frozen->ground_.disk,
                LazyFile::restore(context, disk_number, disk_size, std::move(disk)));
  }
  return frozen;
}

Result<std::shared_ptr<Frozen>> Frozen::open_snapshot(Context& context, const std::string& name) {
  const std::string folder = context.snapshot_dir() + "/" + name;
  auto text = read_file(folder + "/snapshot.json");
  if (!text) {
    return fail(Code::not_found, "snapshot '{}': no such snapshot; `snow snapshot ls` lists them",
                name);
  }
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("config")) {
    return fail(Code::corrupt, "snapshot '{}': {}/snapshot.json is damaged", name, folder);
  }
  SNOW_ASSIGN(const MachineConfig config, machine_config_from_json(json.at("config")));
  std::shared_ptr<Frozen> frozen(new Frozen(context, random_hex(8), config));
  frozen->snapshot_ = name;
  frozen->settled_ = true;
  SNOW_ASSIGN(const std::string state, read_file(folder + "/state"));
  const auto* bytes = reinterpret_cast<const std::byte*>(state.data());
  frozen->state_.assign(bytes, bytes + state.size());
  frozen->ground_.boot = BootFiles::at(config.has_kernel ? folder + "/kernel" : "",
                                       config.has_initrd ? folder + "/initrd" : "");
  SNOW_ASSIGN(auto memory, Image::of_file(folder + "/memory", config.memory_bytes, false));
  SNOW_ASSIGN(frozen->ground_.memory, LazyFile::show(context, std::move(memory)));
  if (config.has_disk) {
    SNOW_ASSIGN(auto disk,
                Image::of_file(folder + "/disk.raw", json.value("disk_size", uint64_t{0}), false));
    SNOW_ASSIGN(frozen->ground_.disk, LazyFile::show(context, std::move(disk)));
  }
  SNOW_TRY(frozen->record());
  return frozen;
}

Result<void> Frozen::write_snapshot(const std::string& folder) const {
  SNOW_TRY(memory_image()->write_to(folder + "/memory"));
  if (ground_.disk) SNOW_TRY(ground_.disk->image()->write_to(folder + "/disk.raw"));
  const auto copy = [&](const std::string& from, const char* to) -> Result<void> {
    if (from.empty()) return {};
    SNOW_ASSIGN(const std::string content, read_file(from, size_t{1} << 30));
    return write_file(folder + "/" + to, content);
  };
  if (config_.has_kernel) SNOW_TRY(copy(ground_.boot->kernel(), "kernel"));
  if (config_.has_initrd) SNOW_TRY(copy(ground_.boot->initrd(), "initrd"));
  return write_file(folder + "/state",
                    std::string_view(reinterpret_cast<const char*>(state_.data()), state_.size()),
                    0600);
}

}  // namespace snow
