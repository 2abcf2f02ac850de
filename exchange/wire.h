// What hosts say to each other on a connection of service "pages", as bytes; the tables are in
// docs/exchange-protocol.md. Pure functions over the payloads of peer/'s frames; no I/O.
//
// Everything that comes from outside is checked here: version, lengths, ranges, checksum
// (Code::corrupt). Encoders replace what is in `out`, which they do not shrink, so that a reused
// buffer is not allocated again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "exchange/core/types.h"
#include "exchange/descriptor.h"

namespace snow::exchange::wire {

inline constexpr uint8_t kVersion = 1;

// The frame's type; those below 16 are peer/'s.
enum class Type : uint8_t {
  fetch = 16,   // ask for a run of pages
  pages,        // answer: their bytes
  redirect,     // answer: who has them, and their hashes
  coming,       // answer: they are being multicast
  retry,        // answer: not now
  absent,       // answer of a peer: I do not have them
  unknown,      // answer: I know no such image
  map,          // ask which pages are zeros
  zeros,        // answer: a bit for each page
  subscribe,    // I listen to the image's group
  unsubscribe,  // no more
  have,         // I have this run: others may be sent to me
  report,       // how multicast arrives, which hosts are wrong or slow
  ok,           // answer to those four
};

inline constexpr size_t kMaxHosts = 3;  // in a redirect
inline constexpr size_t kMaxHostBytes = 64;
inline constexpr size_t kMaxReports = 16;
inline constexpr uint32_t kMaxMapPages = 1u << 24;  // of one MAP: 2 MiB of bits
inline constexpr size_t kMaxPayloadBytes = (size_t{2} << 20) + 4096;

using Buffer = std::vector<std::byte>;
using Bytes = std::span<const std::byte>;
using PageHash = std::array<std::byte, 16>;  // the first half of the page's SHA-256

// The tag of a request is repeated in each part of its answer; the last part has `last` set.
struct Fetch {
  uint16_t tag = 0;
  ImageId image{};
  Run run;  // 1 to kMaxRunPages pages
  Lane lane = Lane::demand;
  bool no_redirect = false;
  bool again = false;
  bool no_wait = false;
};
void encode(const Fetch& fetch, Buffer& out);
Result<Fetch> parse_fetch(Bytes payload);

// `body`: the pages of the run that are not zeros, one after the other, or that as an LZ4 block.
struct Pages {
  uint16_t tag = 0;
  bool last = true;
  bool lz4 = false;
  Run run;
  uint64_t zeros = 0;  // bit i: page run.first + i is zeros and not in the body
  Bytes body;
};
inline constexpr size_t kPagesHeadBytes = 28;
// What goes before the body. The checksum covers head, body and image id.
void encode_head(const Pages& pages, const ImageId& image,
                 std::span<std::byte, kPagesHeadBytes> out);
Result<Pages> parse_pages(Bytes payload, const ImageId& image);
[[nodiscard]] uint32_t pages_in_body(const Pages& pages);

struct Redirect {
  uint16_t tag = 0;
  bool last = true;
  Run run;
  bool no_wait = false;  // those hosts are to answer with what they have now
  uint8_t host_count = 0;
  std::array<std::string_view, kMaxHosts> hosts{};  // within the payload
  std::array<PageHash, kMaxRunPages> hashes{};      // run.count of them
};
void encode(const Redirect& redirect, Buffer& out);
Result<Redirect> parse_redirect(Bytes payload);

// COMING, RETRY, ABSENT.
struct Notice {
  uint16_t tag = 0;
  bool last = true;
  Run run;
  uint32_t wait_us = 0;  // COMING: at most; RETRY: at least; ABSENT: 0
};
void encode(const Notice& notice, Buffer& out);
Result<Notice> parse_notice(Bytes payload);

// UNKNOWN, OK.
struct Short {
  uint16_t tag = 0;
  bool leave = false;  // OK: leave the multicast group, unicast serves you better
};
void encode(const Short& message, Buffer& out);
Result<Short> parse_short(Bytes payload);

// MAP (at most kMaxMapPages), HAVE; SUBSCRIBE, UNSUBSCRIBE (the run is 0, 0).
struct About {
  uint16_t tag = 0;
  ImageId image{};
  Run run;
};
void encode(const About& about, Buffer& out);
Result<About> parse_about(Bytes payload);

// Bit i of `bits` (least significant first): page run.first + i is zeros.
struct Zeros {
  uint16_t tag = 0;
  Run run;
};
void encode(const Zeros& zeros, Bytes bits, Buffer& out);
// `bits` is resized to (run.count + 7) / 8.
Result<Zeros> parse_zeros(Bytes payload, Buffer& bits);

struct HostReport {
  bool wrong = false;  // wrong bytes; else: slow
  std::string host;
};
struct Report {
  uint16_t tag = 0;
  ImageId image{};
  uint64_t got = 0, missed = 0;  // multicast packets since the last report
  std::vector<HostReport> hosts;
};
void encode(const Report& report, Buffer& out);
Result<Report> parse_report(Bytes payload);

}  // namespace snow::exchange::wire
