// The cluster's certificates. One host (where the cluster was made) is the authority: its folder
// has the CA's key. Every member's folder has the CA's certificate, and the host's own with its
// key.
//
//   ca.pem  host.pem  host-key.pem  and on the authority  ca-key.pem  tokens.json  issued.json
//
// Files have mode 0600. Keys are ECDSA P-256. The CA's certificate holds for 30 years, a host's for
// 10, both from a day before they were made, as clocks differ. Blocking; not thread-safe for one
// folder but for `sign_request`, which locks.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "peer/credentials.h"

namespace snow::peer {

// Makes `folder`, the CA's key and its certificate. Code::exists if there is one already.
Result<void> make_authority(const std::string& folder, const std::string& cluster_name);

// On the authority: key and certificate for this very host, into `folder`.
Result<void> make_host_certificate(const std::string& folder, const std::string& host);

// What Credentials::load wants, for a folder as above.
Identity identity_in(const std::string& folder, const std::string& host);

// `h` + 12 hex digits.
std::string random_host_id();
bool is_host_id(std::string_view text);

// The SHA-256 of the CA's certificate (DER), which join tokens carry.
Result<Sha256> authority_hash(const std::string& folder);

// The joining host's half: makes its key in `folder` unless there is one, and returns a request
// (PKCS#10, PEM) for a certificate.
Result<std::string> make_request(const std::string& folder, const std::string& host);

// The authority's half: checks the request's own signature and kind of key, and returns a
// certificate (PEM) for `host`, whatever subject the request names. An id is given out once: again
// only for the same key (an answer may have been lost), otherwise Code::exists.
Result<std::string> sign_request(const std::string& folder, const std::string& host,
                                 std::string_view request_pem);

// For tests and the curious: as sign_request and make_host_certificate, but valid for this long
// from the usual start (negative: expired already).
Result<void> make_host_certificate(const std::string& folder, const std::string& host,
                                   int64_t valid_seconds);

}  // namespace snow::peer
