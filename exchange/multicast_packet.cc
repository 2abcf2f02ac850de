#include "exchange/multicast_packet.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/file.h"
#include "exchange/bytes.h"
#include "exchange/page_body.h"

namespace snow::exchange {
namespace {

constexpr char kMagic[4] = {'S', 'N', 'M', 'C'};
constexpr uint8_t kPacketVersion = 2;
constexpr uint8_t kAnnouncement = 1;
constexpr uint8_t kFragment = 2;
constexpr size_t kMaxSignature = 128;

using PacketHead = std::array<std::byte, kPacketHeadBytes>;
using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Digest = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

// The nonce is the last 12 bytes: session and counter.
PacketHead head_of(const ImageId& image, const PacketNumber& number) {
  PacketHead head{};
  std::memcpy(head.data(), kMagic, 4);
  head[4] = std::byte{kPacketVersion};
  std::memcpy(head.data() + 8, image.data(), 4);
  put_at<uint64_t>(head.data() + 12, number.session);
  put_at<uint32_t>(head.data() + 20, number.counter);
  return head;
}

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

// Ed25519 hashes by itself.
const EVP_MD* digest_for(EVP_PKEY* key) {
  const int type = EVP_PKEY_get_base_id(key);
  return type == EVP_PKEY_ED25519 || type == EVP_PKEY_ED448 ? nullptr : EVP_sha256();
}

void require(bool condition) {
  if (!condition) std::abort();  // OpenSSL without AES or out of memory
}

}  // namespace

Result<SigningKey> SigningKey::from_private_file(const std::string& pem_file) {
  SNOW_ASSIGN(const std::string pem, read_file(pem_file, 65536));
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  EVP_PKEY* key = PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr);
  if (key == nullptr) return fail(Code::corrupt, "{}: no private key in it", pem_file);
  SigningKey made;
  made.key_.reset(key, EVP_PKEY_free);
  made.secret_ = pem;
  return made;
}

Result<SigningKey> SigningKey::from_public_pem(const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  EVP_PKEY* key = PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr);
  if (key == nullptr) return fail(Code::invalid, "the origin's public key cannot be read");
  SigningKey made;
  made.key_.reset(key, EVP_PKEY_free);
  return made;
}

std::string SigningKey::public_pem() const {
  const Bio bio(BIO_new(BIO_s_mem()), BIO_free);
  require(PEM_write_bio_PUBKEY(bio.get(), key_.get()) == 1);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<size_t>(size)};
}

Result<std::vector<std::byte>> SigningKey::sign(wire::Bytes text) const {
  const Digest context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  std::vector<std::byte> signature(512);
  size_t size = signature.size();
  if (EVP_DigestSignInit(context.get(), nullptr, digest_for(key_.get()), nullptr, key_.get()) !=
          1 ||
      EVP_DigestSign(context.get(), raw(signature.data()), &size, raw(text.data()), text.size()) !=
          1) {
    return fail(Code::internal, "the host's key does not sign");
  }
  if (size > kMaxSignature) {
    return fail(Code::invalid, "the host's key makes signatures of {} bytes, where {} are room for",
                size, kMaxSignature);
  }
  signature.resize(size);
  return signature;
}

bool SigningKey::verify(wire::Bytes text, wire::Bytes signature) const {
  const Digest context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  return EVP_DigestVerifyInit(context.get(), nullptr, digest_for(key_.get()), nullptr,
                              key_.get()) == 1 &&
         EVP_DigestVerify(context.get(), raw(signature.data()), signature.size(), raw(text.data()),
                          text.size()) == 1;
}

GroupKey SigningKey::group_key(const ImageId& image) const {
  const std::string text = "snow multicast group " + to_text(image);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  require(HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
               reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data(),
               &size) != nullptr);
  GroupKey key;
  std::memcpy(key.data(), digest.data(), key.size());
  return key;
}

Sealer::Sealer(const GroupKey& key, const ImageId& image)
    : seal_(EVP_CIPHER_CTX_new()), open_(EVP_CIPHER_CTX_new()), image_(image) {
  require(EVP_EncryptInit_ex(seal_, EVP_aes_128_gcm(), nullptr, raw(key.data()), nullptr) == 1);
  require(EVP_DecryptInit_ex(open_, EVP_aes_128_gcm(), nullptr, raw(key.data()), nullptr) == 1);
}

Sealer::Sealer(Sealer&& other) noexcept
    : seal_(std::exchange(other.seal_, nullptr)),
      open_(std::exchange(other.open_, nullptr)),
      image_(other.image_) {}

Sealer::~Sealer() {
  EVP_CIPHER_CTX_free(seal_);
  EVP_CIPHER_CTX_free(open_);
}

void Sealer::seal(const PacketNumber& number, wire::Bytes content, wire::Buffer& packet) {
  const PacketHead head = head_of(image_, number);
  packet.resize(head.size() + content.size() + kPacketTagBytes);
  std::copy(head.begin(), head.end(), packet.begin());
  std::byte* const body = packet.data() + head.size();
  int size = 0;
  const int length = static_cast<int>(content.size());
  require(EVP_EncryptInit_ex(seal_, nullptr, nullptr, nullptr, raw(head.data() + 12)) == 1 &&
          EVP_EncryptUpdate(seal_, nullptr, &size, raw(head.data()), kPacketHeadBytes) == 1 &&
          EVP_EncryptUpdate(seal_, raw(body), &size, raw(content.data()), length) == 1 &&
          EVP_EncryptFinal_ex(seal_, raw(body + size), &size) == 1 &&
          EVP_CIPHER_CTX_ctrl(seal_, EVP_CTRL_GCM_GET_TAG, kPacketTagBytes,
                              body + content.size()) == 1);
}

std::optional<PacketNumber> Sealer::open(wire::Bytes packet, wire::Buffer& content) {
  if (packet.size() <= kPacketHeadBytes + kPacketTagBytes || packet.size() > kMaxPacketBytes) {
    return std::nullopt;
  }
  const PacketNumber number{get_at<uint64_t>(packet.data() + 12),
                            get_at<uint32_t>(packet.data() + 20)};
  const PacketHead head = head_of(image_, number);
  if (!std::equal(head.begin(), head.end(), packet.begin())) return std::nullopt;
  const size_t length = packet.size() - kPacketHeadBytes - kPacketTagBytes;
  content.resize(length);
  std::array<std::byte, kPacketTagBytes> tag{};
  std::memcpy(tag.data(), packet.data() + kPacketHeadBytes + length, tag.size());
  int size = 0;
  const bool good =
      EVP_DecryptInit_ex(open_, nullptr, nullptr, nullptr, raw(head.data() + 12)) == 1 &&
      EVP_DecryptUpdate(open_, nullptr, &size, raw(head.data()), kPacketHeadBytes) == 1 &&
      EVP_DecryptUpdate(open_, raw(content.data()), &size, raw(packet.data() + kPacketHeadBytes),
                        static_cast<int>(length)) == 1 &&
      EVP_CIPHER_CTX_ctrl(open_, EVP_CTRL_GCM_SET_TAG, kPacketTagBytes, tag.data()) == 1 &&
      EVP_DecryptFinal_ex(open_, raw(content.data() + size), &size) == 1;
  return good ? std::optional(number) : std::nullopt;
}

namespace {

void put_announcement(Put& put, const Announcement& announcement) {
  put.number<uint32_t>(announcement.burst)
      .number<uint32_t>(announcement.run.first)
      .number<uint16_t>(static_cast<uint16_t>(announcement.run.count));
  for (uint32_t i = 0; i < announcement.run.count; ++i) {
    put.raw(announcement.hashes[i]).number<uint16_t>(announcement.sizes[i]);
  }
}

std::optional<Announcement> take_announcement(Take& take) {
  Announcement announcement;
  announcement.burst = take.number<uint32_t>();
  announcement.run.first = take.number<uint32_t>();
  announcement.run.count = take.number<uint16_t>();
  const Run run = announcement.run;
  if (!take.ok() || run.count == 0 || run.count > kMaxRunPages ||
      run.first > UINT32_MAX - run.count) {
    return std::nullopt;
  }
  for (uint32_t i = 0; i < run.count; ++i) {
    const wire::Bytes hash = take.raw(sizeof(wire::PageHash));
    std::copy(hash.begin(), hash.end(), announcement.hashes[i].begin());
    announcement.sizes[i] = take.number<uint16_t>();
    if (announcement.sizes[i] > kPageBytes) return std::nullopt;
  }
  const wire::Bytes signature = take.raw(take.number<uint8_t>());
  if (!take.at_end() || signature.size() > kMaxSignature) return std::nullopt;
  announcement.signature.assign(signature.begin(), signature.end());
  return announcement;
}

}  // namespace

void signed_text(const Announcement& announcement, const ImageId& image, uint64_t session,
                 wire::Buffer& out) {
  Put put(out);
  put.raw(std::as_bytes(std::span("snow burst 2")));
  put.raw(image).number<uint64_t>(session);
  put_announcement(put, announcement);
}

void encode(const Announcement& announcement, wire::Buffer& out) {
  Put put(out);
  put.number<uint8_t>(kAnnouncement);
  put_announcement(put, announcement);
  put.number<uint8_t>(static_cast<uint8_t>(announcement.signature.size()));
  put.raw(announcement.signature);
}

void pack_burst(std::span<std::byte> pages, Announcement& announcement) {
  // A fragment less at least: else it saves little, and costs every receiver the unpacking.
  thread_local std::array<std::byte, (kFragmentsPerPage - 1) * kFragmentBytes> packed;
  for (uint32_t i = 0; i < announcement.run.count; ++i) {
    const auto page = pages.subspan(size_t{i} * kPageBytes, kPageBytes);
    if (is_zero_page(page.data())) {
      announcement.hashes[i] = zero_page_hash();
      announcement.sizes[i] = 0;
      continue;
    }
    announcement.hashes[i] = page_hash(page.data());
    const size_t size = pack_page(page, packed);
    announcement.sizes[i] = static_cast<uint16_t>(size > 0 ? size : kPageBytes);
    std::copy_n(packed.begin(), size, page.begin());
  }
}

Fragment fragment_of(const Announcement& announcement, uint16_t page, uint8_t part,
                     wire::Bytes bodies) {
  const size_t at = part * kFragmentBytes;
  return {announcement.burst, page, part,
          bodies.subspan(page * kPageBytes + at,
                         std::min(kFragmentBytes, announcement.sizes[page] - at))};
}

void encode(const Fragment& fragment, wire::Buffer& out) {
  Put put(out);
  put.number<uint8_t>(kFragment)
      .number<uint8_t>(fragment.part)
      .number<uint16_t>(fragment.page)
      .number<uint32_t>(fragment.burst);
  put.raw(fragment.bytes);
}

PacketContent parse_packet(wire::Bytes content) {
  PacketContent parsed;
  Take take(content);
  const auto kind = take.number<uint8_t>();
  if (kind == kAnnouncement) {
    parsed.announcement = take_announcement(take);
  } else if (kind == kFragment && content.size() > kFragmentHeadBytes) {
    Fragment fragment;
    fragment.part = take.number<uint8_t>();
    fragment.page = take.number<uint16_t>();
    fragment.burst = take.number<uint32_t>();
    fragment.bytes = content.subspan(kFragmentHeadBytes);
    if (fragment.page < kMaxRunPages && fragment.part < kFragmentsPerPage &&
        fragment.bytes.size() <=
            std::min(kFragmentBytes, kPageBytes - fragment.part * kFragmentBytes)) {
      parsed.fragment = fragment;
    }
  }
  return parsed;
}

}  // namespace snow::exchange
