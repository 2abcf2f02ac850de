// Any bytes as any message of the page protocol: no crash; what is accepted says the same when it
// is written and read again. The first byte chooses the parser; half of the inputs get the right
// checksum, so that the parser behind it is reached.
#include <lz4.h>
#include <xxhash.h>

#include <cstdlib>
#include <cstring>

#include "exchange/bytes.h"
#include "exchange/page_body.h"
#include "exchange/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace snow::exchange;

void require(bool condition) {
  if (!condition) std::abort();
}

template <class Message, class Parse>
void round_trip(wire::Bytes payload, Parse&& parse) {
  const auto message = parse(payload);
  if (!message) return;
  wire::Buffer out;
  wire::encode(*message, out);
  require(static_cast<bool>(parse(out)));
  require(std::equal(out.begin(), out.end(), payload.begin(), payload.end()));
}

void fuzz_pages(wire::Buffer& payload) {
  const ImageId image{};
  if (payload.size() >= wire::kPagesHeadBytes) {
    wire::Pages head;  // the checksum that these bytes should have
    head.tag = get_at<uint16_t>(payload.data() + 2);
    head.last = (std::to_integer<int>(payload[1]) & 1) != 0;
    head.lz4 = (std::to_integer<int>(payload[1]) & 2) != 0;
    head.run = {get_at<uint32_t>(payload.data() + 4), get_at<uint16_t>(payload.data() + 8)};
    head.zeros = get_at<uint64_t>(payload.data() + 12);
    head.body = wire::Bytes(payload).subspan(wire::kPagesHeadBytes);
    std::array<std::byte, wire::kPagesHeadBytes> right{};
    wire::encode_head(head, image, right);
    std::memcpy(payload.data() + 20, right.data() + 20, 8);
  }
  const auto pages = wire::parse_pages(payload, image);
  if (!pages) return;
  wire::Buffer scratch;
  const auto raw = unpack(*pages, scratch);
  if (!raw) return;
  uint32_t count = 0;
  visit_stretches(pages->run, pages->zeros, *raw,
                  [&](Run run, wire::Bytes) { count += run.count; });
  require(count == pages->run.count);
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  wire::Buffer payload(bytes + 2, bytes + size);
  if ((data[1] & 1) != 0 && payload.size() >= 8) {
    const uint64_t checksum = XXH3_64bits(payload.data(), payload.size() - 8);
    std::memcpy(payload.data() + payload.size() - 8, &checksum, 8);
  }
  switch (data[0] % 8) {
    case 0:
      round_trip<wire::Fetch>(payload, wire::parse_fetch);
      break;
    case 1:
      fuzz_pages(payload);
      break;
    case 2:
      round_trip<wire::Redirect>(payload, wire::parse_redirect);
      break;
    case 3:
      round_trip<wire::Notice>(payload, wire::parse_notice);
      break;
    case 4:
      (void)wire::parse_short(payload);
      break;
    case 5:
      round_trip<wire::About>(payload, wire::parse_about);
      break;
    case 6:
      round_trip<wire::Report>(payload, wire::parse_report);
      break;
    default: {
      wire::Buffer bits;
      (void)wire::parse_zeros(payload, bits);
    }
  }
  return 0;
}
