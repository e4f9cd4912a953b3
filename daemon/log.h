/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.h - the daemon says things once, where it decides: to the journal with fields when there is one,
 * else to stderr as one line.  Any thread may call; lines that clients can cause are rate limited.
 */
#ifndef SKVCD_DAEMON_LOG_H
#define SKVCD_DAEMON_LOG_H

#include <stdint.h>

struct session;

/*
 * Events that an operator may look for: journalctl MESSAGE_ID=..., or SKVCD_EVENT=started.  The word, the id,
 * which never changes, and what happened; daemon/skvcd.catalog says more of each.
 */
#define LOG_EVENTS(X)                                                                             \
	X(STARTED, "started", "78fd0ececb8d46df83a4c196d0a31ead", "skvcd serves")                 \
	X(STOPPED, "stopped", "b5bdd4ab94504ba7ad2e340836370efa", "skvcd has stopped in order")   \
	X(START_FAILED, "start-failed", "6d63772992c341348372dd2a155a7484", "skvcd cannot start") \
	X(RELOADED, "reloaded", "98f467ba72564502bb1f7be707aa1c09", "the configuration was read") \
	X(RELOAD_FAILED, "reload-failed", "e6e8c4c4f84042e08c8c82b7eb5082bc",                     \
	  "the old configuration stays")                                                          \
	X(STUCK, "stuck", "03b957b8fd5b4d40bc71d8edbd374c7a", "the data path does not move")      \
	X(NVME_OUT, "nvme-out", "3bd641c305744c7ea26fa0ee158263d2",                               \
	  "the NVMe tier is out of service")                                                      \
	X(NVME_IN, "nvme-in", "776d99c18f4241bab07012832e9dad7a", "the NVMe tier is in service")  \
	X(GPU_FAILED, "gpu-failed", "a72cc066d3014cecb02248ba035e08aa", "the GPU has failed")     \
	X(MODEL_FAILED, "model-failed", "bc7f2fc8642f4ae9a6367bbc323489db",                       \
	  "a model could not be loaded")                                                          \
	X(SESSION_OPENED, "session-opened", "5fd0ee2c30144c80b4f5cacfc6961109",                   \
	  "a client has connected")                                                               \
	X(SESSION_CLOSED, "session-closed", "ab812fc5ebb94149b442e39d50698d57",                   \
	  "a client has left or died")                                                            \
	X(SESSION_FAILED, "session-failed", "8fbf199a5d6a4dd983c04421c85ec76d",                   \
	  "a session was ended for what its client did, or was not taken")                        \
	X(NOT_PERMITTED, "not-permitted", "db6de276255847fdb670f996164a59ed",                     \
	  "somebody may not ask on the bus")                                                      \
	X(KEPT_BACK, "kept-back", "476658caa2304b0996c74b2b51bf9d39",                             \
	  "lines about a client were kept back")                                                  \
	X(QUOTA, "quota", "b48cf3af8f9347ec90aefe644a00b099", "a quota was set")                  \
	X(EVICTED, "evicted", "80a7a7b3c1394a2485f4224b9e00e363", "blocks were evicted as asked") \
	X(DRAIN, "drain", "ed01a213bbac4ea4b991cc44807b4730", "draining has begun or ended")

enum log_event {
	LOG_EVENT_NONE,
#define LOG_EVENT_ENUM(id, word, uuid, text) LOG_EVENT_##id,
	LOG_EVENTS(LOG_EVENT_ENUM)
#undef LOG_EVENT_ENUM
		LOG_EVENT_COUNT
};

enum log_level {
	LOG_LEVEL_ERR = 3,
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7
};

void log_init(int debug);
void log_set_debug(int debug); /* at any time */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
void log_event(enum log_event event, enum log_level level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/*
 * About a client: adds pid, uid, session, tenant and reason.  At most 10 a second of one user's warnings and 10 of
 * the rest; says how many it kept back.
 */
void log_client(enum log_event event, enum log_level level, const struct session *session,
		uint16_t reason, const char *format, ...) __attribute__((format(printf, 5, 6)));

#endif
