// The handlers behind api/routes.cc's table; one per operation of api/openapi.yaml.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "api/routes.h"
#include "base/result.h"
#include "vm/host.h"

namespace snow::handlers {

struct Context {
  Host& host;
  const Call& call;
  std::string name;  // the path's VM, image, snapshot or ticket
  const std::atomic<bool>& stopping;
};
using Handler = Result<Reply> (*)(const Context&);

Result<Reply> info(const Context& context);
Result<Reply> document(const Context& context);
Result<Reply> list_images(const Context& context);
Result<Reply> import_image(const Context& context);
Result<Reply> get_image(const Context& context);
Result<Reply> remove_image(const Context& context);
Result<Reply> list_vms(const Context& context);
Result<Reply> run(const Context& context);
Result<Reply> inspect(const Context& context);
Result<Reply> remove(const Context& context);
Result<Reply> pause(const Context& context);
Result<Reply> resume(const Context& context);
Result<Reply> stop(const Context& context);
Result<Reply> kill(const Context& context);
Result<Reply> fork(const Context& context);
Result<Reply> reserve(const Context& context);
Result<Reply> snapshot(const Context& context);
Result<Reply> list_tickets(const Context& context);
Result<Reply> give_back(const Context& context);
Result<Reply> join(const Context& context);
Result<Reply> kill_ticket(const Context& context);
Result<Reply> list_snapshots(const Context& context);
Result<Reply> get_snapshot(const Context& context);
Result<Reply> remove_snapshot(const Context& context);

Result<Reply> detach(const Context& context);
Result<Reply> make_cluster(const Context& context);
Result<Reply> join_cluster(const Context& context);
Result<Reply> make_join_token(const Context& context);
Result<Reply> list_hosts(const Context& context);
Result<Reply> get_host(const Context& context);
Result<Reply> remove_host(const Context& context);
Result<Reply> drain_host(const Context& context);

// Streams (handlers_stream.cc)
Result<Reply> exec(const Context& context);
Result<Reply> console(const Context& context);
Result<Reply> logs(const Context& context);
Result<Reply> read_file(const Context& context);
Result<Reply> write_file_whole(const Context& context);
Result<std::unique_ptr<Upload>> write_file(const Context& context);
Result<Reply> events(const Context& context);

}  // namespace snow::handlers
