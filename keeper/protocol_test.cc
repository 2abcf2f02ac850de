// What the keeper accepts as a message, and what it refuses.
#include "keeper/protocol.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <string>

namespace snow {
namespace {

SpawnSpec good_spec() {
  SpawnSpec spec;
  spec.id = "vm-1";
  spec.role = "boot";
  spec.argv = {"/usr/bin/qemu-system-x86_64", "-S", "a \"quoted\" word"};
  spec.binds = {{"/run/a", "/vm/run", true}, {"/disks/b", "/vm/disk", false}};
  spec.root = "/run/root";
  spec.uid = 70000;
  spec.share_network = true;
  spec.no_huge_pages = true;
  spec.memory_limit_bytes = uint64_t{5} << 30;
  spec.log_path = "/run/log";
  return spec;
}

TEST(Protocol, RequestComesBackAsItWas) {
  const auto text =
      format_request({.number = 7, .operation = Operation::spawn, .spec = good_spec()});
  ASSERT_TRUE(text);
  const auto request = parse_request(*text);
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->number, 7u);
  EXPECT_EQ(request->spec.argv, good_spec().argv);
  EXPECT_EQ(request->spec.uid, 70000u);
  EXPECT_TRUE(request->spec.share_network);
  EXPECT_TRUE(request->spec.no_huge_pages);
  EXPECT_FALSE(request->spec.kvm);
  EXPECT_EQ(request->spec.memory_limit_bytes, uint64_t{5} << 30);
  ASSERT_EQ(request->spec.binds.size(), 2u);
  EXPECT_EQ(request->spec.binds[0].target, "/vm/run");
  EXPECT_TRUE(request->spec.binds[0].writable);
  EXPECT_FALSE(request->spec.binds[1].writable);
}

TEST(Protocol, ReplyComesBackAsItWas) {
  Reply reply{.number = 9, .pid = 12, .more = true};
  reply.processes.push_back({12, "a", "shell", false, 0x8b});
  const auto again = parse_reply(format_reply(reply));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->number, 9u);
  EXPECT_TRUE(again->more);
  ASSERT_EQ(again->processes.size(), 1u);
  EXPECT_EQ(again->processes[0].status, 0x8b);

  const auto error =
      parse_reply(format_reply({.number = 3, .error = Error{Code::no_room, "full"}}));
  ASSERT_TRUE(error);
  ASSERT_TRUE(error->error);
  EXPECT_EQ(error->error->code, Code::no_room);
  EXPECT_EQ(error->error->message, "full");
}

TEST(Protocol, MalformedMessagesAreRefused) {
  for (const char* text :
       {"", "{", "[]", "7", "{}", R"({"number":1})", R"({"number":-1,"operation":"list","pid":0})",
        R"({"number":1,"operation":"dance"})", R"({"number":1,"operation":"kill"})",
        R"({"number":1,"operation":"kill","pid":"7"})",
        R"({"number":1,"operation":"kill","pid":99999999999})",
        R"({"number":1,"operation":"table_fd","bytes":99999999999})",
        R"({"number":1,"operation":"spawn"})", R"({"number":1,"operation":"spawn","spec":[]})",
        R"({"number":1,"operation":"spawn","spec":{"id":"a"}})"}) {
    EXPECT_FALSE(parse_request(text)) << text;
  }
  EXPECT_FALSE(parse_request(std::string(kMaxPacketBytes + 1, ' ')));
  EXPECT_FALSE(parse_request(std::string(kMaxPacketBytes, '[')));
  EXPECT_FALSE(parse_reply(R"({"number":0})"));
  EXPECT_EQ(request_number(R"({"number":5,"operation":"dance"})"), 5u);
  EXPECT_EQ(request_number("nonsense"), 0u);
}

TEST(Protocol, TooLongARequestIsNotSent) {
  SpawnSpec spec = good_spec();
  spec.argv.emplace_back(kMaxPacketBytes, 'x');
  const auto text = format_request({.number = 7, .operation = Operation::spawn, .spec = spec});
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().code, Code::invalid);
}

TEST(Protocol, NamesThatAreNotUtf8AreRefused) {
  SpawnSpec spec = good_spec();
  spec.argv.emplace_back("\xff\xfe");
  EXPECT_FALSE(format_request({.number = 7, .operation = Operation::spawn, .spec = spec}));
}

TEST(Protocol, UnsafeSpecsAreRefused) {
  const auto refused = [](auto change) {
    SpawnSpec spec = good_spec();
    change(spec);
    const auto result = check_spawn_spec(spec);
    return !result && result.error().code == Code::invalid;
  };
  EXPECT_TRUE(check_spawn_spec(good_spec()));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.uid = 0; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.uid = static_cast<uid_t>(-1); }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.id = ""; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.id = "../x"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.id = "a/b"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.argv.clear(); }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.argv[0] = "qemu"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.argv.emplace_back("a\0b", 3); }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.root = "root"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.root = "/"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.log_path = "/a/../b"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.binds[0].target = "/../etc"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.binds[0].target = "/a//b"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.binds[0].source = "a"; }));
  EXPECT_TRUE(refused([](SpawnSpec& s) { s.binds.resize(kMaxBinds + 1, s.binds[0]); }));
}

TEST(Packet, CarriesTextAndADescriptor) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const Fd one(ends[0]);
  Fd two(ends[1]);
  ASSERT_TRUE(send_packet(one.get(), "text", 0));
  auto packet = receive_packet(two.get());
  ASSERT_TRUE(packet);
  EXPECT_EQ(packet->text, "text");
  EXPECT_TRUE(packet->fd.valid());
  two.reset();
  packet = receive_packet(one.get());
  ASSERT_TRUE(packet);
  EXPECT_TRUE(packet->end);
  EXPECT_EQ(send_packet(one.get(), "text").error().code, Code::unavailable);
}

TEST(Packet, TooLongOneIsCorrupt) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const Fd one(ends[0]);
  const Fd two(ends[1]);
  ASSERT_TRUE(send_packet(one.get(), std::string(kMaxPacketBytes + 1, 'x')));
  const auto packet = receive_packet(two.get());
  ASSERT_FALSE(packet);
  EXPECT_EQ(packet.error().code, Code::corrupt);
}

}  // namespace
}  // namespace snow
