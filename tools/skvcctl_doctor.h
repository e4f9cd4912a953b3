/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_doctor.h - is this machine fit for skvcd?  skvcctl_facts.c looks, skvcctl_doctor.c judges and
 * says how to mend it: apart, so that a test can judge machines that are not there.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_DOCTOR_H
#define SKVCD_TOOLS_SKVCCTL_DOCTOR_H

#include "tools/skvcctl.h"

#define DOCTOR_LINES_MAX 24u
#define DOCTOR_CONFIG SYSCONFDIR "/skvcd/skvcd.conf"

/* What the daemon would run with, as far as the doctor asks: its file, or the defaults. */
struct doctor_config {
	char file[256]; /* empty: the built-in defaults */
	char wrong
		[512]; /* what skvcd --check-config says of it; empty: nothing, or it could not be asked */
	uint64_t pool_bytes, nvme_bytes;
	uint64_t nvme_own_bytes; /* of the first file, when its path says so; else 0 */
	int numa_node;
	bool lock_memory, no_persist; /* [host] */
	char nvme_path[256];
	char gpu_device[64];
	char socket[108], bus_socket[108], state_dir[256];
};

enum doctor_mps { DOCTOR_MPS_NONE, DOCTOR_MPS_PRIVATE, DOCTOR_MPS_SHARED };

/* Errors are positive errno, 0 is good. */
struct doctor_facts {
	struct doctor_config config;
	char user[64]; /* who runs this */
	bool root;
	/* the daemon */
	int daemon_pid; /* 0: none */
	enum skvcctl_exit bus;
	char bus_error[SKVCCTL_ERR_BYTES], health[32], version[32];
	/* machine */
	char kernel[65];
	unsigned kernel_major, kernel_minor;
	int uring_error, uring_modern_error; /* with and without the flags of 6.0 */
	int uring_disabled;		     /* kernel.io_uring_disabled; -1: no such key */
	uint64_t memlock_bytes;		     /* UINT64_MAX: no limit */
	bool memlock_of_daemon;		     /* else of this shell */
	bool service;			     /* systemd runs, and has skvcd.service */
	int store_fds; /* that systemd keeps for it over a restart; -1: it could not be asked */
	bool memlock_privileged;			      /* CAP_IPC_LOCK: no limit holds */
	uint64_t memory_bytes, available_bytes, locked_bytes; /* the last: by the daemon */
	char huge_pages[64];	    /* "always [madvise] never"; empty: none */
	char shared_huge_pages[64]; /* the same of memfds, which have more choices */
	unsigned nodes;		    /* of memory */
	bool node_exists;	    /* the configured one */
	/* NVMe file */
	char nvme_dir[256];
	int nvme_dir_error, nvme_direct_error;
	uint64_t nvme_free_bytes, nvme_has_bytes; /* on its filesystem; of the file, already */
	/* GPU */
	char driver[128];     /* empty: no NVIDIA driver */
	int gpus;	      /* as CUDA counts them; -1: CUDA could not be asked */
	char cuda_error[128]; /* why */
	int gpu_node_error;   /* opening /dev/nvidiactl and /dev/nvidia-uvm */
	bool gpu_library;     /* libskvcd-cuda.so is where the daemon looks */
	char gpu_library_path[256];
	enum doctor_mps mps;
	char mps_dir[128];
	/* clients */
	int socket_error, bus_socket_error; /* for this user */
	char socket_group[64];
	uint32_t socket_mode;
	int same_ipc, same_pid; /* namespaces of daemon and caller: 1, 0, -1 unknown */
	int state_dir_error;
	uint32_t state_dir_mode;
};

enum doctor_state { DOCTOR_OK, DOCTOR_NOTE, DOCTOR_WARNING, DOCTOR_FAILURE };

struct doctor_line {
	enum doctor_state state;
	char check[20];
	char says[256];
	char fix[384]; /* what to type or to write; empty for OK */
};

struct doctor_report {
	struct doctor_line line[DOCTOR_LINES_MAX];
	unsigned count;
};

/* config: NULL, the default one if it is there. */
void doctor_look(const struct skvcctl_source *source, const char *config, struct doctor_facts *ret);
void doctor_judge(const struct doctor_facts *f, struct doctor_report *ret);
enum doctor_state doctor_worst(const struct doctor_report *r);
void doctor_print(const struct doctor_report *r, bool color, FILE *out);
int doctor_print_json(const struct doctor_report *r, FILE *out);

#endif
