#include "vm/ticket.h"

namespace snow {

nlohmann::json ticket_to_json(const Ticket& ticket) {
  nlohmann::json json = {{"ticket", ticket.id},
                         {"vm", ticket.owner},
                         {"requested", ticket.requested},
                         {"granted", ticket.granted},
                         {"state", ticket.forked ? "forked" : "reserved"},
                         {"created", ticket.created}};
  json["expires"] = ticket.forked ? nlohmann::json(nullptr) : nlohmann::json(ticket.expires);
  return json;
}

nlohmann::json ticket_to_record(const Ticket& ticket) {
  nlohmann::json json = ticket_to_json(ticket);
  json["hierarchical"] = ticket.hierarchical;
  json["inside"] = ticket.inside;
  json["clones"] = nlohmann::json::array();
  for (const CloneEnd& clone : ticket.clones) {
    json["clones"].push_back({{"index", clone.index},
                              {"vm", clone.vm},
                              {"host", clone.host},
                              {"how", clone.how},
                              {"status", clone.status},
                              {"result_bytes", clone.result_bytes},
                              {"removed", clone.removed}});
  }
  return json;
}

std::shared_ptr<Ticket> ticket_from_record(const nlohmann::json& record) {
  auto ticket = std::make_shared<Ticket>();
  ticket->id = record.at("ticket");
  ticket->owner = record.at("vm");
  ticket->hierarchical = record.at("hierarchical");
  ticket->inside = record.at("inside");
  ticket->requested = record.at("requested");
  ticket->granted = record.at("granted");
  ticket->created = record.at("created");
  ticket->forked = record.at("state") == "forked";
  for (const auto& clone : record.at("clones")) {
    ticket->clones.push_back({clone.at("index"), clone.at("vm"), clone.value("host", ""),
                              clone.at("how"), clone.at("status"), clone.at("result_bytes"),
                              clone.value("removed", false)});
  }
  return ticket;
}

}  // namespace snow
