// A member of a cluster that is not to be trusted: `rogue STATE_DIR HOST ADDRESS ORIGIN
// ORIGIN_ADDRESS`.
//
// It has a real member's certificate (that of HOST, whose snowd does not run), fetches pages of
// ORIGIN as anybody does, so that the origin sends others here, and then serves them badly. It
// takes commands on standard input, a line each, and answers each with a line:
//
//   fetch IMAGE PAGES  asks the origin for all pages of the image: "fetched N", N of them bytes
//   mode MODE          how it serves from now on, and counts anew: "mode MODE"
//   count              "count N": FETCHes that were answered (or not) in this mode
//
// MODE: good: as it should. flip: each page has one wrong bit. zeros: "they are all zeros". other:
// a neighbour's bytes. silent: takes the question and never answers. broken: right bytes for half
// of the run, then the connection ends. garbage: a frame that means nothing.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "exchange/connections.h"
#include "exchange/page_body.h"
#include "exchange/wire.h"
#include "peer/authority.h"
#include "peer/connection.h"
#include "peer/server.h"

namespace snow::exchange {
namespace {

constexpr int kTimeoutMs = 30'000;

class Rogue {
 public:
  Rogue(std::shared_ptr<const peer::Credentials> us, std::string origin, peer::Address address)
      : us_(std::move(us)), origin_(std::move(origin)), origin_address_(std::move(address)) {}

  Result<size_t> fetch(const ImageId& image, uint32_t pages);
  void set_mode(const std::string& mode);
  [[nodiscard]] uint64_t count() const { return asked_; }
  void serve(peer::Connection& connection);

 private:
  Result<void> take_answer(peer::Connection& connection, const wire::Fetch& fetch);
  Result<void> answer(peer::Connection& connection, const wire::Fetch& fetch,
                      const std::string& mode);
  Result<void> send_pages(peer::Connection& connection, const wire::Fetch& fetch, Run run,
                          bool last, const std::string& mode);
  std::vector<std::byte> bytes_of(const ImageId& image, uint32_t page);

  const std::shared_ptr<const peer::Credentials> us_;
  const std::string origin_;
  const peer::Address origin_address_;
  std::atomic<uint64_t> asked_{0};
  std::mutex mutex_;  // of what follows
  std::string mode_ = "good";
  std::map<ImageId, std::map<uint32_t, std::vector<std::byte>>> pages_;  // without zero pages
};

// Of pages that are zeros, and of any that it does not have: zeros.
std::vector<std::byte> Rogue::bytes_of(const ImageId& image, uint32_t page) {
  const std::lock_guard lock(mutex_);
  const auto& kept = pages_[image];
  const auto at = kept.find(page);
  return at == kept.end() ? std::vector<std::byte>(kPageBytes) : at->second;
}

void Rogue::set_mode(const std::string& mode) {
  const std::lock_guard lock(mutex_);
  mode_ = mode;
  asked_ = 0;
}

Result<void> Rogue::take_answer(peer::Connection& connection, const wire::Fetch& fetch) {
  wire::Buffer payload, scratch;
  for (bool last = false; !last;) {
    SNOW_ASSIGN(const uint8_t type, connection.receive_into(payload, kTimeoutMs));
    if (type != static_cast<uint8_t>(wire::Type::pages)) {
      return fail(Code::corrupt, "answer of type {}, PAGES wanted", type);
    }
    SNOW_ASSIGN(const wire::Pages pages, wire::parse_pages(payload, fetch.image));
    SNOW_ASSIGN(const wire::Bytes raw, unpack(pages, scratch));
    const std::lock_guard lock(mutex_);
    visit_stretches(pages.run, pages.zeros, raw, [&](Run run, wire::Bytes bytes) {
      for (uint32_t i = 0; i < run.count && !bytes.empty(); ++i) {
        const auto page = bytes.subspan(size_t{i} * kPageBytes, kPageBytes);
        pages_[fetch.image][run.first + i].assign(page.begin(), page.end());
      }
    });
    last = pages.last;
  }
  return {};
}

Result<size_t> Rogue::fetch(const ImageId& image, uint32_t pages) {
  SNOW_ASSIGN(auto connection, peer::Connection::connect(*us_, origin_address_, origin_,
                                                         kDemandService, kTimeoutMs));
  connection->set_limit(wire::kMaxPayloadBytes);
  wire::Buffer out;
  for (uint32_t first = 0; first < pages; first += kMaxRunPages) {
    wire::Fetch fetch;
    fetch.image = image;
    fetch.run = {first, std::min(kMaxRunPages, pages - first)};
    fetch.no_redirect = true;
    wire::encode(fetch, out);
    SNOW_TRY(connection->send(static_cast<uint8_t>(wire::Type::fetch), out, kTimeoutMs));
    SNOW_TRY(take_answer(*connection, fetch));
  }
  const std::lock_guard lock(mutex_);
  return pages_[image].size();
}

Result<void> Rogue::send_pages(peer::Connection& connection, const wire::Fetch& fetch, Run run,
                               bool last, const std::string& mode) {
  std::vector<std::byte> body;
  for (uint32_t page = run.first; page < run.end(); ++page) {
    auto bytes = bytes_of(fetch.image, mode == "other" ? page + 1 : page);
    if (mode == "zeros") std::fill(bytes.begin(), bytes.end(), std::byte{0});
    if (mode == "flip") bytes[page % kPageBytes] ^= std::byte{0x10};
    body.insert(body.end(), bytes.begin(), bytes.end());
  }
  wire::Pages pages;
  pages.tag = fetch.tag;
  pages.last = last;
  pages.run = run;
  pages.zeros = squeeze_zeros(body);
  pages.body = wire::Bytes(body).first(size_t{wire::pages_in_body(pages)} * kPageBytes);
  std::array<std::byte, wire::kPagesHeadBytes> head{};
  wire::encode_head(pages, fetch.image, head);  // its checksum is right: only the hashes tell
  return connection.send(static_cast<uint8_t>(wire::Type::pages), head, pages.body, kTimeoutMs);
}

Result<void> Rogue::answer(peer::Connection& connection, const wire::Fetch& fetch,
                           const std::string& mode) {
  if (mode == "silent") {
    while (!connection.broken()) {
      SNOW_ASSIGN(const bool more, connection.wait(1000));
      if (more) return fail(Code::unavailable, "who asked does not wait any more");
    }
  }
  if (mode == "garbage") {
    const std::vector<std::byte> noise(100, std::byte{0xa5});
    return connection.send(static_cast<uint8_t>(wire::Type::pages), noise, kTimeoutMs);
  }
  if (mode == "broken") {
    const Run half{fetch.run.first, fetch.run.count / 2};
    if (half.count > 0) SNOW_TRY(send_pages(connection, fetch, half, false, mode));
    return fail(Code::unavailable, "broken off as told");
  }
  return send_pages(connection, fetch, fetch.run, true, mode);
}

void Rogue::serve(peer::Connection& connection) {
  while (auto frame = connection.receive(-1)) {
    if (frame->type != static_cast<uint8_t>(wire::Type::fetch)) {
      (void)connection.send_error({Code::invalid, "pages only"}, kTimeoutMs);
      return;
    }
    const auto fetch = wire::parse_fetch(frame->payload);
    if (!fetch) return;
    std::string mode;
    {
      const std::lock_guard lock(mutex_);
      mode = mode_;
      ++asked_;
    }
    if (!answer(connection, *fetch, mode)) return;
  }
}

std::string obey(Rogue& rogue, const std::string& line) {
  std::istringstream words(line);
  std::string command, argument;
  uint32_t pages = 0;
  words >> command >> argument >> pages;
  if (command == "count") return fmt::format("count {}", rogue.count());
  if (command == "mode") {
    rogue.set_mode(argument);
    return "mode " + argument;
  }
  if (command != "fetch") return "what?";
  const auto image = image_id_from(argument);
  if (!image) return image.error().message;
  const auto fetched = rogue.fetch(*image, pages);
  return fetched ? fmt::format("fetched {}", *fetched) : fetched.error().message;
}

Result<void> run(char** words) {
  const std::string folder = std::string(words[1]) + "/cluster", host = words[2];
  SNOW_ASSIGN(const auto address, peer::parse_address(words[3]));
  SNOW_ASSIGN(const auto origin_address, peer::parse_address(words[5]));
  SNOW_ASSIGN(const auto us, peer::Credentials::load(peer::identity_in(folder, host)));
  Rogue rogue(us, words[4], origin_address);
  peer::Server server(us);
  for (const std::string_view service : {kDemandService, kBulkService}) {
    server.add(std::string(service), [&](peer::Connection& with) { rogue.serve(with); });
  }
  SNOW_TRY(server.start(address));
  for (std::string line; std::getline(std::cin, line);) {
    fmt::print("{}\n", obey(rogue, line));
    std::fflush(stdout);
  }
  server.stop();
  return {};
}

}  // namespace
}  // namespace snow::exchange

int main(int count, char** words) {
  if (count != 6) {
    fmt::print(stderr, "usage: rogue STATE_DIR HOST ADDRESS ORIGIN ORIGIN_ADDRESS\n");
    return 2;
  }
  if (const auto done = snow::exchange::run(words); !done) {
    fmt::print(stderr, "rogue: {}\n", done.error().message);
    return 1;
  }
  return 0;
}
