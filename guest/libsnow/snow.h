/* libsnow: a program forks the virtual machine that it runs in. The semantics are SnowFlock's
 * (EuroSys'09, section 3): a ticket reserves room for clones, a clone call copies the whole
 * machine, every process and thread in it, and returns in each copy; clones end with snow_exit and
 * the parent collects them with snow_join.
 *
 *     snow_ticket* ticket;
 *     int n = snow_request_ticket(8, 0, &ticket);        // n <= 8 clones, or an error (negative)
 *     int id = snow_clone(ticket);                       // 0 here, 1..n in the clones
 *     if (id > 0) snow_exit(0, result, sizeof result);   // does not return
 *     snow_results* results;
 *     int count = snow_join(ticket, -1, &results);
 *
 * Every function that returns int gives a negative SNOW_E... on failure; snow_message() then says
 * what, why and what to do. The calls go over /run/snow/agent.sock (SNOW_AGENT_SOCKET names
 * another) to snow-agent and on to the host; any user may call. Each blocks until the host has
 * answered.
 *
 * Thread safety: all functions may be called from any thread; one ticket by one thread at a time.
 * A clone has all threads of the parent, each where it was.
 */
#ifndef SNOW_H
#define SNOW_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SNOW_ID_BYTES 64             /* an id and its zero byte */
#define SNOW_MAX_PAYLOAD (16u << 20) /* bytes of one clone's result */

/* Flags of snow_request_ticket. */
#define SNOW_HIERARCHICAL 1u /* each clone forks processes to fill its vCPUs, see snow_clone */
#define SNOW_EXACT 2u        /* all n or none; without it at least one */
#define SNOW_SPREAD 4u       /* clones evenly on all hosts of the cluster that have room */
#define SNOW_LOCAL 8u        /* on this machine's host only; without either: there first */

/* Errors: the negatives of the codes that the host's command line exits with. */
enum {
  SNOW_E_INTERNAL = -1,
  SNOW_E_USAGE = -2,
  SNOW_E_NOT_FOUND = -3, /* no such ticket or checkpoint */
  SNOW_E_EXISTS = -4,
  SNOW_E_INVALID = -5,     /* an argument is out of range, or a payload too large */
  SNOW_E_NO_ROOM = -6,     /* the host's limits cannot hold it; nothing was changed */
  SNOW_E_WRONG_STATE = -7, /* a join from a clone, an exit in a machine that is no clone, ... */
  SNOW_E_NO_AGENT = -8,
  SNOW_E_GUEST_FAILED = -9,
  SNOW_E_TIMED_OUT = -10,
  SNOW_E_DENIED = -11,
  SNOW_E_UNAVAILABLE = -12, /* no agent in this machine, or the host cannot be reached */
  SNOW_E_HOST_FAILED = -13,
  SNOW_E_CORRUPT = -14,
  SNOW_E_SPENT = -15 /* the ticket was used already */
};

typedef struct snow_ticket snow_ticket;
typedef struct snow_results snow_results;

/* Reserves room on the host for `n` clones and gets them ready to start. Result: how many were
 * granted (1..n), and *ticket, freed with snow_ticket_free. A ticket is good for one snow_clone or
 * snow_create_clones, and spent when its join has collected every clone. */
int snow_request_ticket(unsigned n, unsigned flags, snow_ticket** ticket);

const char* snow_ticket_id(const snow_ticket* ticket);
/* Ids that snow_clone gives to clones: 1..this. Granted clones, times vCPUs if hierarchical. */
unsigned snow_ticket_processes(const snow_ticket* ticket);
/* Frees the memory. The reservation ends with a join, with snow_kill, or after the host's time. */
void snow_ticket_free(snow_ticket* ticket);

/* Clones the machine. Result: 0 in the parent, 1..n in the clones. On failure there are no clones
 * and the parent goes on.
 *
 * With SNOW_HIERARCHICAL the calling process of each clone then forks until there is one for each
 * vCPU, and each gets an id of its own: vCPU k (from 0) of clone i (from 1) is
 * (i - 1) * vcpus + k + 1. The clone ends when all of them have called snow_exit or died. Only the
 * calling thread goes on in the forked ones, as after fork(2). */
int snow_clone(snow_ticket* ticket);

/* Freezes the machine as it is now, to make clones of later, as often as wanted. Result: 0 here,
 * and the checkpoint's id in `id`; in a clone that is made from it the same call returns 1..n. */
int snow_checkpoint(char id[SNOW_ID_BYTES]);

/* Makes clones of a checkpoint. Result: how many. They continue in snow_checkpoint; collect them
 * with snow_join. */
int snow_create_clones(const char* checkpoint, snow_ticket* ticket);

/* Ends this clone; its status and `size` bytes of payload travel to the parent's snow_join. Returns
 * only on failure: SNOW_E_WRONG_STATE if this is no clone, SNOW_E_INVALID if the payload is above
 * SNOW_MAX_PAYLOAD (above SNOW_MAX_PAYLOAD / vcpus - 16 in a hierarchical clone). A clone whose
 * program ends without it runs on until it is killed. */
int snow_exit(int status, const void* payload, size_t size);

typedef enum {
  SNOW_EXITED = 0,  /* called snow_exit: status and payload are its */
  SNOW_KILLED = 1,  /* by snow_kill, or from the host */
  SNOW_CRASHED = 2, /* the machine (or the process, if hierarchical) died */
  SNOW_LOST = 3,    /* its host lost it, or the payload did not arrive */
  SNOW_RUNNING = 4  /* the timeout came first; the ticket can be joined again */
} snow_how;

typedef struct {
  unsigned index; /* the id that snow_clone returned in it */
  snow_how how;
  int status;
  const void* payload; /* owned by the results */
  size_t size;
} snow_result;

/* Waits for the clones of a ticket, at most `timeout_ms` (-1: for ever). Result: how many entries
 * *results has, in the order of their ids; freed with snow_results_free. */
int snow_join(snow_ticket* ticket, int timeout_ms, snow_results** results);
const snow_result* snow_results_get(const snow_results* results, unsigned i); /* NULL beyond */
void snow_results_free(snow_results* results);

/* Ends all clones of a ticket at once. Result: how many. */
int snow_kill(snow_ticket* ticket);

typedef struct {
  char id[SNOW_ID_BYTES], name[SNOW_ID_BYTES], parent[SNOW_ID_BYTES], ticket[SNOW_ID_BYTES];
  unsigned index;      /* 0: not a clone, or the parent */
  unsigned generation; /* forks between the first boot and this machine */
} snow_machine;
int snow_info(snow_machine* machine); /* 0, or an error */

const char* snow_strerror(int code); /* "no_room", ... */
const char* snow_message(void);      /* of this thread's last failure */

#ifdef __cplusplus
}
#endif
#endif
