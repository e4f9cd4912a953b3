/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl_msg.h - messages on the control socket (SOCK_SEQPACKET): one message is one packet, one request
 * has one answer, file descriptors travel with SCM_RIGHTS.  After the handshake the socket carries only
 * registrations and, by closing, death.  Fixed little-endian layouts; PROTOCOL.md draws them.
 *
 * The check functions are pure: bytes in, verdict out.  They run on a private copy of the packet.
 */
#ifndef SKVCD_IPC_CTL_MSG_H
#define SKVCD_IPC_CTL_MSG_H

#include <stddef.h>
#include <stdint.h>

#include "ipc/abi.h"

#define CTL_MAGIC 0x31435653u	      /* "SVC1" */
#define CTL_MSG_BYTES_MAX (48u << 10) /* any packet: header + 1024 strides */
#define CTL_FDS_MAX 4u
#define CTL_NAME_BYTES 64u
#define CTL_MODEL_BYTES 256u
#define CTL_SALT_BYTES 64u
#define CTL_TEXT_BYTES 192u
#define CTL_SEGMENTS_MAX 1024u

enum ctl_type {
	/* client -> daemon */
	CTL_HELLO = 1,
	CTL_NS_OPEN = 2,
	CTL_ARENA_NEW = 3,
	CTL_ARENA_FREE = 4,
	CTL_REGION_HOST = 5,
	CTL_REGION_GPU = 6,
	CTL_EVENT_GPU = 7,
	CTL_REGION_FREE = 8,
	CTL_BYE = 9, /* drain, answer CTL_OK, close */
	CTL_MEMORY_GPU = 10,
	CTL_NS_PREFILL = 11,
	CTL_REQUEST_COUNT,
	/* daemon -> client */
	CTL_WELCOME =
		64, /* fds: segment memfd, sq eventfd (client writes), cq socket (client polls) */
	CTL_NS = 65,
	CTL_ARENA = 66,	 /* fds: arena memfd */
	CTL_REGION = 67, /* a region, an allocation or an event */
	CTL_OK = 68,
	CTL_ERROR = 69,
};

struct ctl_header { /* first in every message */
	uint32_t magic;
	uint16_t type; /* enum ctl_type */
	uint16_t reserved;
	uint32_t bytes; /* of the whole packet */
	uint32_t seq;	/* chosen by the client, echoed in the answer */
};

struct ctl_hello {
	struct ctl_header h;
	uint16_t abi_major;
	uint16_t abi_minor;
	uint16_t abi_major_min; /* the oldest daemon this client accepts */
	uint16_t abi_minor_min;
	uint32_t role;		      /* 0 worker, 1 scheduler */
	uint32_t sq_entries;	      /* power of two, 8..4096 */
	uint64_t args_bytes;	      /* multiple of 4096, 64 KiB..64 MiB */
	uint8_t name[CTL_NAME_BYTES]; /* UTF-8, NUL-terminated, rest zero */
};

struct ctl_welcome {
	struct ctl_header h;
	uint16_t abi_major;
	uint16_t abi_minor;
	uint16_t abi_major_min; /* the oldest client this daemon accepts */
	uint16_t abi_minor_min;
	uint32_t session_id;
	uint32_t reserved;
	uint64_t segment_bytes;
	uint64_t arena_bytes_max; /* per session, sum of its arenas */
	uint64_t lease_ttl_default_ns;
};

struct ctl_ns_open {
	struct ctl_header h;
	uint32_t block_tokens;
	uint32_t segments_count;
	uint32_t salt_bytes;
	uint32_t reserved;
	uint8_t model[CTL_MODEL_BYTES];	    /* NUL-terminated, rest zero */
	uint8_t salt[CTL_SALT_BYTES];	    /* rest zero */
	struct skvc_abi_segment segments[]; /* segments_count */
};

struct ctl_ns {
	struct ctl_header h;
	uint32_t ns; /* handle in this session, >= 1 */
	uint32_t reserved;
	uint64_t block_raw_bytes;
};

struct ctl_arena_new {
	struct ctl_header h;
	uint64_t bytes; /* multiple of 4096 */
};

struct ctl_arena {
	struct ctl_header h;
	uint32_t arena; /* handle in this session, >= 1 */
	uint32_t reserved;
	uint64_t bytes;
};

struct ctl_free { /* ARENA_FREE; REGION_FREE: a region, an allocation or an event */
	struct ctl_header h;
	uint32_t handle;
	uint32_t reserved;
};

struct ctl_region_host {
	struct ctl_header h;
	uint32_t ns;
	uint32_t arena;
	uint32_t blocks_count;
	uint32_t strides_count; /* 0: packed; else the namespace's segments_count */
	uint64_t offset;
	struct skvc_abi_stride strides[];
};

enum ctl_memory_type { CTL_MEMORY_IPC_HANDLE = 1, CTL_MEMORY_POSIX_FD = 2 };

/*
 * One allocation of the client's GPU memory.  fd: the POSIX export, with CTL_MEMORY_POSIX_FD; else none.
 * The allocation stays open as long as its handle lives or a region lies in it.
 */
struct ctl_memory_gpu {
	struct ctl_header h;
	uint32_t memory_type; /* enum ctl_memory_type */
	uint32_t reserved;
	uint64_t allocation_bytes;
	uint8_t ipc_handle[64]; /* CTL_MEMORY_IPC_HANDLE; else zero */
	uint8_t device_uuid[16];
};

struct ctl_region_gpu {
	struct ctl_header h;
	uint32_t ns;
	uint32_t blocks_count;
	uint32_t strides_count; /* 0: packed; else the namespace's segments_count */
	uint32_t memory;	/* packed: handle of the allocation; else 0 */
	uint64_t offset;	/* packed: of block 0 in the allocation; else 0 */
	struct skvc_abi_gpu_stride strides[];
};

struct ctl_event_gpu {
	struct ctl_header h;
	uint8_t ipc_event[64];
};

struct ctl_region { /* answer to REGION_*, MEMORY_GPU, EVENT_GPU: one number space */
	struct ctl_header h;
	uint32_t handle; /* >= 1 */
	uint32_t reserved;
};

struct ctl_ns_prefill { /* how fast the engine computes what it does not find; answer OK */
	struct ctl_header h;
	uint32_t ns;
	uint32_t reserved;
	uint64_t tokens_per_s; /* 0: not said, lookups find whatever is here */
};

struct ctl_ok {
	struct ctl_header h;
};

struct ctl_error {
	struct ctl_header h;
	int32_t res;	    /* negative errno */
	uint16_t reason;    /* enum skvc_abi_reason */
	uint16_t abi_major; /* the daemon's, so that a refusal carries both numbers */
	uint16_t abi_minor;
	uint16_t reserved[3];
	uint8_t text[CTL_TEXT_BYTES]; /* NUL-terminated, one line: what was wrong, what to do */
};

_Static_assert(sizeof(struct ctl_header) == 16, "ctl_header");
_Static_assert(sizeof(struct ctl_hello) == 104, "ctl_hello");
_Static_assert(sizeof(struct ctl_welcome) == 56, "ctl_welcome");
_Static_assert(sizeof(struct ctl_ns_open) == 352, "ctl_ns_open");
_Static_assert(sizeof(struct ctl_ns) == 32, "ctl_ns");
_Static_assert(sizeof(struct ctl_arena_new) == 24, "ctl_arena_new");
_Static_assert(sizeof(struct ctl_arena) == 32, "ctl_arena");
_Static_assert(sizeof(struct ctl_free) == 24, "ctl_free");
_Static_assert(sizeof(struct ctl_region_host) == 40, "ctl_region_host");
_Static_assert(sizeof(struct ctl_memory_gpu) == 112, "ctl_memory_gpu");
_Static_assert(sizeof(struct ctl_region_gpu) == 40, "ctl_region_gpu");
_Static_assert(sizeof(struct ctl_region_gpu) +
			       CTL_SEGMENTS_MAX * sizeof(struct skvc_abi_gpu_stride) <=
		       CTL_MSG_BYTES_MAX,
	       "the longest layout fits a packet");
_Static_assert(sizeof(struct ctl_event_gpu) == 80, "ctl_event_gpu");
_Static_assert(sizeof(struct ctl_region) == 24, "ctl_region");
_Static_assert(sizeof(struct ctl_ns_prefill) == 32, "ctl_ns_prefill");
_Static_assert(sizeof(struct ctl_error) == 224, "ctl_error");

/*
 * Check one packet from a client: magic, type, that `bytes` equals the packet's length and the length
 * its counts imply, reserved fields zero, strings terminated, every bound of abi.h.  Returns 0, or
 * -EPROTO with *ret_reason set and one line of text (what was wrong) in ret_text[CTL_TEXT_BYTES].
 * The reason is BAD_MESSAGE, or VERSION for a HELLO of another major (whose later fields are then not
 * looked at: only the first 24 bytes of a HELLO are the same in every version).  How many descriptors
 * came with the packet, and whether its handles exist, is the caller's to check.
 */
int ctl_msg_check_request(const void *packet, size_t packet_bytes, uint16_t *ret_reason,
			  char *ret_text);

/* The same for an answer of type `expected` (or CTL_ERROR) to the request `seq`; used by the client. */
int ctl_msg_check_answer(const void *packet, size_t packet_bytes, uint16_t expected, uint32_t seq);

void ctl_msg_init(struct ctl_header *h, uint16_t type, uint32_t bytes, uint32_t seq);

/*
 * One direction of the handshake: 0 when the version (major, minor) is not older than what the other side
 * accepts, else -EPROTO.  Each side asks it both ways - its own version against the other's minimum, the
 * other's version against its own minimum - and demands equal majors besides (the daemon by
 * ctl_msg_check_request, the client by comparing WELCOME's).
 */
int ctl_msg_versions_meet(uint16_t major, uint16_t minor, uint16_t other_major_min,
			  uint16_t other_minor_min);

#endif
