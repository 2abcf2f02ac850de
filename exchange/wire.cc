#include "exchange/wire.h"

#include <lz4.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "exchange/bytes.h"

namespace snow::exchange::wire {
namespace {

constexpr uint8_t kLast = 1;   // flags of an answer
constexpr uint8_t kLz4 = 2;    // PAGES, ZEROS
constexpr uint8_t kLeave = 4;  // OK
constexpr size_t kChecksumBytes = 8;

// Every message begins with version, flags and tag, and all but PAGES end with a checksum of what
// is before it.
Put begin(Buffer& out, uint8_t flags, uint16_t tag) {
  Put put(out);
  put.number<uint8_t>(kVersion).number<uint8_t>(flags).number<uint16_t>(tag);
  return put;
}

void seal(Buffer& out) {
  const uint64_t checksum = XXH3_64bits(out.data(), out.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(&checksum);
  out.insert(out.end(), bytes, bytes + sizeof checksum);
}

struct Head {
  uint8_t flags = 0;
  uint16_t tag = 0;
};

// `known`: the flags that this message may have.
Result<Head> take_head(Take& take, const char* what, uint8_t known) {
  const auto version = take.number<uint8_t>();
  Head head;
  head.flags = take.number<uint8_t>();
  head.tag = take.number<uint16_t>();
  if (!take.ok()) return fail(Code::corrupt, "{}: cut short", what);
  if (version != kVersion) {
    return fail(Code::corrupt, "{}: version {} of the page protocol, but this host knows only {}",
                what, version, kVersion);
  }
  if ((head.flags & ~known) != 0) return fail(Code::corrupt, "{}: unknown flags", what);
  return head;
}

// The payload without its checksum, which is right. The version is looked at first: a later one may
// have its checksum elsewhere.
Result<Bytes> opened(Bytes payload, const char* what) {
  if (!payload.empty() && std::to_integer<uint8_t>(payload[0]) != kVersion) return payload;
  if (payload.size() < 4 + kChecksumBytes) return fail(Code::corrupt, "{}: cut short", what);
  const Bytes content = payload.first(payload.size() - kChecksumBytes);
  if (XXH3_64bits(content.data(), content.size()) !=
      get_at<uint64_t>(payload.data() + content.size())) {
    return fail(Code::corrupt, "{}: its checksum is wrong", what);
  }
  return content;
}

void put_image(Put& put, const ImageId& image) { put.raw(image); }

ImageId take_image(Take& take) {
  ImageId image{};
  const Bytes bytes = take.raw(image.size());
  std::copy(bytes.begin(), bytes.end(), image.begin());
  return image;
}

bool good_run(Run run, uint32_t most) {
  return run.count >= 1 && run.count <= most && run.first <= UINT32_MAX - run.count;
}

uint64_t pages_checksum(std::span<const std::byte> head, Bytes body, const ImageId& image) {
  std::array<std::byte, 28> all{};  // the head without its checksum, the body's hash
  std::memcpy(all.data(), head.data(), 20);
  put_at<uint64_t>(all.data() + 20, XXH3_64bits(body.data(), body.size()));
  return XXH3_64bits_withSeed(all.data(), all.size(), get_at<uint64_t>(image.data()));
}

}  // namespace

void encode(const Fetch& fetch, Buffer& out) {
  Put put = begin(out, 0, fetch.tag);
  put_image(put, fetch.image);
  const auto options = static_cast<uint8_t>((fetch.no_redirect ? 1 : 0) | (fetch.again ? 2 : 0) |
                                            (fetch.no_wait ? 4 : 0));
  put.number<uint32_t>(fetch.run.first)
      .number<uint16_t>(static_cast<uint16_t>(fetch.run.count))
      .number<uint8_t>(static_cast<uint8_t>(fetch.lane))
      .number<uint8_t>(options);
  seal(out);
}

Result<Fetch> parse_fetch(Bytes payload) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "FETCH"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "FETCH", 0));
  Fetch fetch;
  fetch.tag = head.tag;
  fetch.image = take_image(take);
  fetch.run.first = take.number<uint32_t>();
  fetch.run.count = take.number<uint16_t>();
  const auto lane = take.number<uint8_t>();
  const auto options = take.number<uint8_t>();
  if (!take.at_end() || !good_run(fetch.run, kMaxRunPages) || lane > 2 || options > 7) {
    return fail(Code::corrupt, "FETCH: {} bytes, {} pages, lane {}, options {}", payload.size(),
                fetch.run.count, lane, options);
  }
  fetch.lane = static_cast<Lane>(lane);
  fetch.no_redirect = (options & 1) != 0;
  fetch.again = (options & 2) != 0;
  fetch.no_wait = (options & 4) != 0;
  return fetch;
}

uint32_t pages_in_body(const Pages& pages) {
  return pages.run.count - static_cast<uint32_t>(std::popcount(pages.zeros));
}

void encode_head(const Pages& pages, const ImageId& image,
                 std::span<std::byte, kPagesHeadBytes> out) {
  std::byte* at = out.data();
  put_at<uint8_t>(at, kVersion);
  put_at<uint8_t>(at + 1, static_cast<uint8_t>((pages.last ? kLast : 0) | (pages.lz4 ? kLz4 : 0)));
  put_at<uint16_t>(at + 2, pages.tag);
  put_at<uint32_t>(at + 4, pages.run.first);
  put_at<uint16_t>(at + 8, static_cast<uint16_t>(pages.run.count));
  put_at<uint16_t>(at + 10, 0);
  put_at<uint64_t>(at + 12, pages.zeros);
  put_at<uint64_t>(at + 20, pages_checksum(out.first(20), pages.body, image));
}

Result<Pages> parse_pages(Bytes payload, const ImageId& image) {
  Take take(payload);
  SNOW_ASSIGN(const Head head, take_head(take, "PAGES", kLast | kLz4));
  Pages pages;
  pages.tag = head.tag;
  pages.last = (head.flags & kLast) != 0;
  pages.lz4 = (head.flags & kLz4) != 0;
  pages.run.first = take.number<uint32_t>();
  pages.run.count = take.number<uint16_t>();
  const auto reserved = take.number<uint16_t>();
  pages.zeros = take.number<uint64_t>();
  const auto checksum = take.number<uint64_t>();
  if (!take.ok() || reserved != 0 || !good_run(pages.run, kMaxRunPages) ||
      (pages.run.count < 64 && pages.zeros >> pages.run.count != 0)) {
    return fail(Code::corrupt, "PAGES: {} bytes, {} pages, zeros {:#x}", payload.size(),
                pages.run.count, pages.zeros);
  }
  pages.body = payload.subspan(kPagesHeadBytes);
  const size_t raw = size_t{pages_in_body(pages)} * kPageBytes;
  if (pages.lz4 ? pages.body.empty() || pages.body.size() >= raw : pages.body.size() != raw) {
    return fail(Code::corrupt, "PAGES: {} bytes for {} pages", pages.body.size(),
                pages_in_body(pages));
  }
  if (checksum != pages_checksum(payload.first(20), pages.body, image)) {
    return fail(Code::corrupt, "PAGES: its checksum is wrong");
  }
  return pages;
}

void encode(const Redirect& redirect, Buffer& out) {
  Put put = begin(out, redirect.last ? kLast : 0, redirect.tag);
  put.number<uint32_t>(redirect.run.first)
      .number<uint16_t>(static_cast<uint16_t>(redirect.run.count))
      .number<uint8_t>(redirect.host_count)
      .number<uint8_t>(redirect.no_wait ? 1 : 0);
  for (size_t i = 0; i < redirect.host_count; ++i) {
    put.number<uint8_t>(static_cast<uint8_t>(redirect.hosts[i].size()));
    put.raw(std::as_bytes(std::span(redirect.hosts[i])));
  }
  for (size_t i = 0; i < redirect.run.count; ++i) put.raw(redirect.hashes[i]);
  seal(out);
}

Result<Redirect> parse_redirect(Bytes payload) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "REDIRECT"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "REDIRECT", kLast));
  Redirect redirect;
  redirect.tag = head.tag;
  redirect.last = (head.flags & kLast) != 0;
  redirect.run.first = take.number<uint32_t>();
  redirect.run.count = take.number<uint16_t>();
  redirect.host_count = take.number<uint8_t>();
  const auto no_wait = take.number<uint8_t>();
  redirect.no_wait = no_wait == 1;
  bool good = take.ok() && good_run(redirect.run, kMaxRunPages) && redirect.host_count >= 1 &&
              redirect.host_count <= kMaxHosts && no_wait <= 1;
  for (size_t i = 0; good && i < redirect.host_count; ++i) {
    const Bytes name = take.raw(take.number<uint8_t>());
    good = take.ok() && !name.empty() && name.size() <= kMaxHostBytes;
    redirect.hosts[i] = {reinterpret_cast<const char*>(name.data()), name.size()};
  }
  for (size_t i = 0; good && i < redirect.run.count; ++i) {
    const Bytes hash = take.raw(sizeof(PageHash));
    std::copy(hash.begin(), hash.end(), redirect.hashes[i].begin());
    good = take.ok();
  }
  if (!good || !take.at_end()) {
    return fail(Code::corrupt, "REDIRECT: {} bytes, {} pages, {} hosts", payload.size(),
                redirect.run.count, redirect.host_count);
  }
  return redirect;
}

void encode(const Notice& notice, Buffer& out) {
  Put put = begin(out, notice.last ? kLast : 0, notice.tag);
  put.number<uint32_t>(notice.run.first)
      .number<uint32_t>(notice.run.count)
      .number<uint32_t>(notice.wait_us);
  seal(out);
}

Result<Notice> parse_notice(Bytes payload) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "notice"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "notice", kLast));
  Notice notice;
  notice.tag = head.tag;
  notice.last = (head.flags & kLast) != 0;
  notice.run.first = take.number<uint32_t>();
  notice.run.count = take.number<uint32_t>();
  notice.wait_us = take.number<uint32_t>();
  if (!take.at_end() || !good_run(notice.run, kMaxRunPages)) {
    return fail(Code::corrupt, "notice: {} bytes, {} pages", payload.size(), notice.run.count);
  }
  return notice;
}

void encode(const Short& message, Buffer& out) {
  begin(out, static_cast<uint8_t>(kLast | (message.leave ? kLeave : 0)), message.tag);
  seal(out);
}

Result<Short> parse_short(Bytes payload) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "answer"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "answer", kLast | kLeave));
  if (!take.at_end()) return fail(Code::corrupt, "answer: {} bytes", payload.size());
  return Short{head.tag, (head.flags & kLeave) != 0};
}

void encode(const About& about, Buffer& out) {
  Put put = begin(out, 0, about.tag);
  put_image(put, about.image);
  put.number<uint32_t>(about.run.first).number<uint32_t>(about.run.count);
  seal(out);
}

Result<About> parse_about(Bytes payload) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "request"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "request", 0));
  About about;
  about.tag = head.tag;
  about.image = take_image(take);
  about.run.first = take.number<uint32_t>();
  about.run.count = take.number<uint32_t>();
  if (!take.at_end() || about.run.first > UINT32_MAX - about.run.count) {
    return fail(Code::corrupt, "request: {} bytes, {} pages", payload.size(), about.run.count);
  }
  return about;
}

void encode(const Zeros& zeros, Bytes bits, Buffer& out) {
  Buffer packed(bits.size());
  const int size = LZ4_compress_default(
      reinterpret_cast<const char*>(bits.data()), reinterpret_cast<char*>(packed.data()),
      static_cast<int>(bits.size()), static_cast<int>(packed.size()));
  const bool lz4 = size > 0;  // 0: it would be longer
  Put put = begin(out, static_cast<uint8_t>(kLast | (lz4 ? kLz4 : 0)), zeros.tag);
  put.number<uint32_t>(zeros.run.first).number<uint32_t>(zeros.run.count);
  put.raw(lz4 ? Bytes(packed).first(static_cast<size_t>(size)) : bits);
  seal(out);
}

Result<Zeros> parse_zeros(Bytes payload, Buffer& bits) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "ZEROS"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "ZEROS", kLast | kLz4));
  Zeros zeros;
  zeros.tag = head.tag;
  zeros.run.first = take.number<uint32_t>();
  zeros.run.count = take.number<uint32_t>();
  if (!take.ok() || !good_run(zeros.run, kMaxMapPages)) {
    return fail(Code::corrupt, "ZEROS: {} bytes, {} pages", payload.size(), zeros.run.count);
  }
  const Bytes body = content.subspan(12);
  bits.resize((zeros.run.count + 7) / 8);
  if ((head.flags & kLz4) == 0) {
    if (body.size() != bits.size()) {
      return fail(Code::corrupt, "ZEROS: {} bytes for {} pages", body.size(), zeros.run.count);
    }
    std::copy(body.begin(), body.end(), bits.begin());
  } else {
    const int size = LZ4_decompress_safe(
        reinterpret_cast<const char*>(body.data()), reinterpret_cast<char*>(bits.data()),
        static_cast<int>(body.size()), static_cast<int>(bits.size()));
    if (size < 0 || static_cast<size_t>(size) != bits.size()) {
      return fail(Code::corrupt, "ZEROS: its body cannot be unpacked");
    }
  }
  return zeros;
}

void encode(const Report& report, Buffer& out) {
  Put put = begin(out, 0, report.tag);
  put_image(put, report.image);
  const size_t count = std::min(report.hosts.size(), kMaxReports);
  put.number<uint64_t>(report.got).number<uint64_t>(report.missed);
  put.number<uint8_t>(static_cast<uint8_t>(count));
  for (size_t i = 0; i < count; ++i) {
    put.number<uint8_t>(report.hosts[i].wrong ? 1 : 0);
    put.number<uint8_t>(static_cast<uint8_t>(report.hosts[i].host.size()));
    put.raw(std::as_bytes(std::span(report.hosts[i].host)));
  }
  seal(out);
}

Result<Report> parse_report(Bytes payload) {
  SNOW_ASSIGN(const Bytes content, opened(payload, "REPORT"));
  Take take(content);
  SNOW_ASSIGN(const Head head, take_head(take, "REPORT", 0));
  Report report;
  report.tag = head.tag;
  report.image = take_image(take);
  report.got = take.number<uint64_t>();
  report.missed = take.number<uint64_t>();
  const auto count = take.number<uint8_t>();
  bool good = take.ok() && count <= kMaxReports;
  for (size_t i = 0; good && i < count; ++i) {
    const auto kind = take.number<uint8_t>();
    const Bytes name = take.raw(take.number<uint8_t>());
    good = take.ok() && kind <= 1 && !name.empty() && name.size() <= kMaxHostBytes;
    report.hosts.push_back(
        {kind == 1, std::string(reinterpret_cast<const char*>(name.data()), name.size())});
  }
  if (!good || !take.at_end()) {
    return fail(Code::corrupt, "REPORT: {} bytes, {} hosts", payload.size(), count);
  }
  return report;
}

}  // namespace snow::exchange::wire
