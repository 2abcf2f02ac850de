// Hello, streams and calls against an agent that behaves.
#include "guestlink/link.h"

#include <gtest/gtest.h>

#include <thread>

#include "guestlink/link_peer.h"

namespace snow {
namespace {

using channel::Fields;
using channel::Type;

TEST(LinkHello, IsAskedForUntilItComes) {
  Seen seen;
  Peer peer;
  EXPECT_EQ(GuestLink::connect(peer.path() + "x", {}).error().code, Code::unavailable);
  auto link = GuestLink::connect(peer.path(), seen.callbacks()).value();
  peer.accept();
  EXPECT_EQ(peer.next(kLongMs, true).type, Type::ask);
  EXPECT_FALSE(link->has_agent());
  const auto waited = link->wait_for_agent(1);
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().code, Code::no_agent);
  EXPECT_EQ(link->exec({.argv = {"true"}}).error().code, Code::no_agent);
  EXPECT_EQ(link->prepare(1).error().code, Code::no_agent);
  EXPECT_EQ(peer.next(kLongMs, true).type, Type::ask);
  peer.hello();
  EXPECT_TRUE(link->wait_for_agent(kLongMs));
  EXPECT_TRUE(link->has_agent());
}

TEST(LinkHello, AnotherVersionIsToldToBothSides) {
  Seen seen;
  Peer peer;
  auto link = GuestLink::connect(peer.path(), seen.callbacks()).value();
  peer.accept();
  peer.send(Type::hello, 0, Fields{{"version", "9\x1b[2J"}});
  auto waited = link->wait_for_agent(kLongMs);
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().code, Code::no_agent);
  EXPECT_NE(waited.error().message.find("version '9?[2J'"), std::string::npos)
      << waited.error().message;
  // A frame of version 2, whole.
  std::string bytes = channel::encode_message({Type::hello, 0, {}});
  bytes.resize(bytes.size() - 4);
  bytes[0] = 2;
  bytes += little_endian(channel::crc32c(bytes));
  peer.raw(channel::cobs_encode(bytes) + '\0');
  const auto refused = peer.expect(Type::refused);
  EXPECT_EQ(Peer::fields(refused)["reason"], "this host speaks version 1");
  peer.hello();
  // The complaint ends each wait at once until the hello has been handled.
  while (!link->wait_for_agent(kLongMs)) ::usleep(1000);
  EXPECT_TRUE(link->has_agent());
}

TEST_F(LinkTest, AGuestThatBootsAgainEndsWhatWasOpen) {
  const auto hello = [&](const char* boot) {
    peer_.send(Type::hello, 0, Fields{{"version", "1"}, {"boot_id", boot}});
    sync();
  };
  hello("first");
  uint32_t number = 0;
  auto stream = exec(number);
  hello("first");  // to an ask before
  EXPECT_FALSE(stream->outcome());
  EXPECT_EQ(stream->outcome().error().code, Code::wrong_state);
  hello("second");
  EXPECT_TRUE(stream->read(kLongMs)->end);
  EXPECT_EQ(stream->outcome().error().message, "command 'cat': the guest booted again");
  stream = exec(number);
  peer_.send(Type::closed, number, Fields{{"code", "ok"}, {"exit", "0"}});
  EXPECT_TRUE(stream->read(kLongMs)->end);
  EXPECT_EQ(stream->outcome().value(), 0);
}

TEST_F(LinkTest, ExecGoesOutAndComesBack) {
  auto stream = link_
                    ->exec({.argv = {"ls", "-l"},
                            .environment = {{"A", "b"}},
                            .directory = "/tmp",
                            .user = "nobody",
                            .terminal = true})
                    .value();
  const auto open = peer_.expect(Type::open);
  EXPECT_EQ(open.stream % 2, 0u);
  Fields fields = Peer::fields(open);
  EXPECT_EQ(fields["kind"], "exec");
  EXPECT_EQ(fields["argc"], "2");
  EXPECT_EQ(fields["argv.1"], "-l");
  EXPECT_EQ(fields["env.A"], "b");
  EXPECT_EQ(fields["terminal"], "1");
  EXPECT_FALSE(stream->read(0).has_value());
  EXPECT_EQ(stream->outcome().error().code, Code::wrong_state);
  peer_.data(open.stream, 1, "out");
  peer_.data(open.stream, 1, "put");
  peer_.data(open.stream, 2, "err");
  peer_.send(Type::eof, open.stream, std::string("\1"));
  peer_.send(Type::closed, open.stream, Fields{{"code", "ok"}, {"exit", "130"}});
  sync();
  EXPECT_EQ(stream->read(kLongMs)->bytes, "output");
  const auto error = stream->read(kLongMs);
  EXPECT_EQ(error->fd, 2);
  EXPECT_EQ(error->bytes, "err");
  EXPECT_TRUE(stream->read(kLongMs)->end);
  EXPECT_TRUE(stream->read(kLongMs)->end);
  EXPECT_EQ(stream->outcome().value(), 130);
  EXPECT_FALSE(stream->write("x"));
}

TEST_F(LinkTest, InputSignalsAndSizesArriveInOrder) {
  uint32_t number = 0;
  auto stream = exec(number);
  ASSERT_TRUE(stream->write("in"));
  stream->send_signal(2);
  stream->resize(50, 132);
  ASSERT_TRUE(stream->write_eof());
  EXPECT_EQ(stream->write("more").error().code, Code::wrong_state);
  EXPECT_EQ(peer_.expect(Type::data).payload, std::string("\0in", 3));
  EXPECT_EQ(Peer::fields(peer_.expect(Type::signal))["signal"], "2");
  EXPECT_EQ(Peer::fields(peer_.expect(Type::resize))["columns"], "132");
  EXPECT_EQ(peer_.expect(Type::eof).payload, std::string(1, '\0'));
  stream.reset();
  EXPECT_EQ(peer_.expect(Type::closed).stream, number);
}

TEST_F(LinkTest, WritingWaitsForCredit) {
  uint32_t number = 0;
  auto stream = exec(number);
  std::atomic<bool> done = false;
  std::thread writer([&] {
    EXPECT_TRUE(stream->write(std::string(channel::kWindowBytes + 1000, 'w')));
    done = true;
  });
  size_t got = 0;
  while (got < channel::kWindowBytes) got += peer_.expect(Type::data).payload.size() - 1;
  EXPECT_EQ(got, channel::kWindowBytes);
  EXPECT_EQ(static_cast<int>(peer_.next(100).type), 0);
  EXPECT_FALSE(done);
  peer_.credit(number, 1000);
  EXPECT_EQ(peer_.expect(Type::data).payload.size(), 1001u);
  writer.join();
}

TEST_F(LinkTest, AWriterThatWaitsIsFreedByCancelAndByTheEnd) {
  uint32_t number = 0;
  auto stream = exec(number);
  const std::string much(channel::kWindowBytes * 2, 'w');
  std::thread writer([&] { EXPECT_EQ(stream->write(much).error().code, Code::wrong_state); });
  std::thread reader([&] { EXPECT_TRUE(stream->read(-1)->end); });
  while (peer_.next().type != Type::data) {
  }
  stream->cancel();
  writer.join();
  reader.join();
  stream = link_->exec({.argv = {"cat"}}).value();
  std::thread second([&] { EXPECT_EQ(stream->write(much).error().code, Code::guest_failed); });
  peer_.close();
  second.join();
  EXPECT_EQ(stream->outcome().error().code, Code::guest_failed);
  EXPECT_TRUE(seen_.wait_closed());
  EXPECT_FALSE(link_->has_agent());
  EXPECT_EQ(link_->exec({.argv = {"x"}}).error().code, Code::guest_failed);
}

TEST_F(LinkTest, ReadingGivesCreditBack) {
  uint32_t number = 0;
  auto stream = exec(number);
  const std::string chunk(32768, 'r');
  uint64_t budget = channel::kWindowBytes;
  for (size_t sent = 0; sent < 4u * channel::kWindowBytes; sent += chunk.size()) {
    while (budget < chunk.size()) {
      budget += from_little_endian(peer_.expect(Type::credit).payload);
    }
    peer_.data(number, 1, chunk);
    budget -= chunk.size();
    for (size_t got = 0; got < chunk.size();) got += stream->read(kLongMs)->bytes.size();
  }
  peer_.send(Type::closed, number, Fields{{"code", "ok"}, {"exit", "0"}});
  while (!stream->read(kLongMs)->end) {
  }
  EXPECT_EQ(stream->outcome().value(), 0);
}

TEST_F(LinkTest, FilesAreReadAndWritten) {
  auto read = link_->read_file("/etc/hostname").value();
  const auto open = peer_.expect(Type::open);
  EXPECT_EQ(Peer::fields(open)["path"], "/etc/hostname");
  peer_.send(Type::closed, open.stream, Fields{{"code", "not_found"}, {"message", "no\x1bsuch"}});
  EXPECT_TRUE(read->read(kLongMs)->end);
  EXPECT_EQ(read->outcome().error().code, Code::not_found);
  EXPECT_EQ(read->outcome().error().message, "guest file '/etc/hostname': no?such");
  auto write = link_->write_file("/tmp/x", 0644).value();
  EXPECT_EQ(Peer::fields(peer_.expect(Type::open))["mode"], "644");
}

TEST_F(LinkTest, NonsenseIsRefusedBeforeItIsSent) {
  EXPECT_EQ(link_->exec({}).error().code, Code::invalid);
  EXPECT_EQ(link_->exec({.argv = {std::string(40'000, 'x')}}).error().code, Code::invalid);
  EXPECT_EQ(link_->exec({.argv = {std::string("a\0b", 3)}}).error().code, Code::invalid);
  EXPECT_EQ(link_->exec({.argv = {"x"}, .environment = {{"A=B", "c"}}}).error().code,
            Code::invalid);
  EXPECT_EQ(link_->read_file("relative").error().code, Code::invalid);
  EXPECT_EQ(link_->write_file("", 0644).error().code, Code::invalid);
  EXPECT_TRUE(check_parameters({{"k", "v"}}, {}));
  EXPECT_EQ(check_parameters({{"", "v"}}, {}).error().code, Code::invalid);
  EXPECT_EQ(check_parameters({{"k", std::string(33'000, 'v')}}, {}).error().code, Code::invalid);
  std::vector<std::unique_ptr<GuestStream>> streams;
  for (int i = 0; i < 64; ++i) streams.push_back(link_->exec({.argv = {"x"}}).value());
  EXPECT_EQ(link_->exec({.argv = {"x"}}).error().code, Code::no_room);
}

TEST_F(LinkTest, ACallIsAnswered) {
  peer_.send(Type::call, 7, Fields{{"call", "info"}});
  peer_.send(Type::call, 9, Fields{{"call", "kill"}, {"ticket", "t"}});
  auto info = seen_.next_call();
  auto kill = seen_.next_call();
  ASSERT_TRUE(info && kill);
  EXPECT_EQ(channel::field(kill->fields(), "ticket"), "t");
  kill->refuse({Code::denied, "not yours"});
  info->answer({{"name", "web"}});
  const auto denied = peer_.expect(Type::answer);
  EXPECT_EQ(denied.stream, 9u);
  EXPECT_EQ(Peer::fields(denied)["code"], "denied");
  const auto answer = peer_.expect(Type::answer);
  EXPECT_EQ(Peer::fields(answer), (Fields{{"code", "ok"}, {"name", "web"}}));
}

TEST_F(LinkTest, AnExitBringsItsWholePayload) {
  peer_.send(Type::call, 1, Fields{{"call", "exit"}, {"status", "3"}});
  std::string sent;
  uint64_t credit = channel::kWindowBytes;
  while (sent.size() < (3u << 20)) {
    const std::string chunk(32768, static_cast<char>('a' + sent.size() / 32768 % 26));
    while (credit < chunk.size()) credit += from_little_endian(peer_.expect(Type::credit).payload);
    peer_.data(1, 1, chunk);
    credit -= chunk.size();
    sent += chunk;
  }
  peer_.send(Type::eof, 1, std::string("\1"));
  const auto call = seen_.next_call();
  ASSERT_TRUE(call);
  EXPECT_EQ(channel::field(call->fields(), "status"), "3");
  EXPECT_TRUE(call->payload() == sent);
}

TEST_F(LinkTest, AJoinsPayloadFollowsWithCredit) {
  for (const size_t size : {size_t{0}, size_t{1} << 20}) {
    peer_.send(Type::call, 5, Fields{{"call", "join"}});
    auto call = seen_.next_call();
    ASSERT_TRUE(call);
    std::string payload(size, 'j');
    if (size > 0) payload.back() = 'z';
    call->answer({{"count", "1"}}, payload);
    call.reset();
    EXPECT_EQ(Peer::fields(peer_.expect(Type::answer))["count"], "1");
    std::string got;
    uint64_t taken = 0;
    for (;;) {
      const auto message = peer_.next();
      if (message.type == Type::eof) break;
      ASSERT_EQ(static_cast<int>(message.type), static_cast<int>(Type::data));
      got += message.payload.substr(1);
      if (got.size() - taken >= 100'000) {
        peer_.credit(5, static_cast<uint32_t>(got.size() - taken));
        taken = got.size();
      }
    }
    EXPECT_TRUE(got == payload);
  }
}

TEST_F(LinkTest, ACallWhoseProgramIsGone) {
  peer_.send(Type::call, 5, Fields{{"call", "join"}});
  auto call = seen_.next_call();
  ASSERT_TRUE(call);
  EXPECT_FALSE(call->gone());
  peer_.send(Type::closed, 5, Fields{{"code", "ok"}});
  sync();
  EXPECT_TRUE(call->gone());
  call->answer({{"count", "1"}}, "payload");
  peer_.send(Type::call, 5, Fields{{"call", "info"}});
  seen_.next_call()->answer({});
  EXPECT_EQ(Peer::fields(peer_.expect(Type::answer)), (Fields{{"code", "ok"}}));
}

}  // namespace
}  // namespace snow
