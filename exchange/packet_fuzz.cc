// Any bytes as a multicast packet, as it comes from the network and behind the seal: no crash, no
// page without a signature; what is accepted says the same when it is written again.
#include <cstdlib>
#include <cstring>

#include "exchange/reassembly.h"
#include "exchange/test_key.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow::exchange;
  static const TestKey key;
  static const MulticastGroup group;
  static Sealer sealer(group.key, ImageId{});
  static Reassembly reassembly(
      group, ImageId{}, 1000,
      SigningKey::from_public_pem(SigningKey::from_private_file(key.path()).value().public_pem())
          .value());
  static uint32_t counter = 0;
  const wire::Bytes input(reinterpret_cast<const std::byte*>(data), size);
  reassembly.add(input);
  const PacketContent parsed = parse_packet(input);
  wire::Buffer again;
  if (parsed.announcement) encode(*parsed.announcement, again);
  if (parsed.fragment) encode(*parsed.fragment, again);
  if (!again.empty() && !std::equal(again.begin(), again.end(), input.begin(), input.end())) {
    std::abort();
  }
  if (size > 0 && size <= kMaxPacketBytes - kPacketHeadBytes - kPacketTagBytes) {
    wire::Buffer packet;
    sealer.seal({size, ++counter}, input, packet);
    reassembly.add(packet);
  }
  reassembly.take_ready(true, [](Run, uint64_t, wire::Bytes) { std::abort(); });
  return 0;
}
