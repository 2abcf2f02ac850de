// What the daemon writes of a VM and a ticket is what the next daemon reads.
#include <gtest/gtest.h>

#include "vm/ticket.h"
#include "vm/vm.h"

namespace snow {
namespace {

TEST(VmRecord, ComesBackWhole) {
  Vm vm;
  vm.id = "0123456789ab";
  vm.name = "web.1";
  vm.state = VmState::crashed;
  vm.config.memory_bytes = 64u << 20;
  vm.config.cpus = 3;
  vm.config.has_kernel = true;
  vm.config.append = "quiet \"x y\"";
  vm.image = "tiny";
  vm.snapshot = "warm";
  vm.parent = "ba9876543210";
  vm.ticket = "t1";
  vm.index = 4;
  vm.count = 8;
  vm.generation = 2;
  vm.children = 7;
  vm.uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
  vm.mac = "52:54:00:00:00:01";
  vm.created = "2026-01-01T00:00:00.000Z";
  vm.ended = "2026-01-01T00:00:01.000Z";
  vm.exit = {"crashed", 9, "its QEMU was killed by signal 9"};
  vm.undone = {"clock: no"};
  vm.steps = {{"stop", 0.5}, {"save", 1.25}};
  vm.environment = {{"A", "1"}};
  vm.parameters = {{"B", "2"}};
  const auto record = vm_to_record(vm);
  const auto back = vm_from_record(nlohmann::json::parse(record.dump()));
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(vm_to_record(**back), record);
  EXPECT_EQ(vm_to_json(**back), vm_to_json(vm));
  EXPECT_TRUE((*back)->ended_already());
}

TEST(VmJson, SaysNullWhereThereIsNothing) {
  const Vm vm;
  const auto json = vm_to_json(vm);
  for (const char* field : {"parent", "ticket", "snapshot", "pid", "ended", "exit"}) {
    EXPECT_TRUE(json.at(field).is_null()) << field;
  }
  EXPECT_EQ(json.at("state"), "starting");
}

TEST(TicketRecord, ComesBackWithItsClones) {
  Ticket ticket;
  ticket.id = "t0102";
  ticket.owner = "0123456789ab";
  ticket.hierarchical = true;
  ticket.requested = 4;
  ticket.granted = 3;
  ticket.created = "2026-01-01T00:00:00.000Z";
  ticket.forked = true;
  ticket.clones = {{1, "a", "", "exited", 7, 16}, {2, "b", "h0102", "running", 0, 0, true}};
  const auto record = ticket_to_record(ticket);
  const auto back = ticket_from_record(nlohmann::json::parse(record.dump()));
  EXPECT_EQ(ticket_to_record(*back), record);
  EXPECT_FALSE(back->all_ended());
  EXPECT_EQ(back->result_bytes(), 16u);
  back->clones[1].how = "lost";
  EXPECT_TRUE(back->all_ended());
}

}  // namespace
}  // namespace snow
