/* SPDX-License-Identifier: Apache-2.0 */
/*
 * import_device.h - a GPU that can only open what an engine exports, over memory of this process; for tests of
 * the control thread.  It runs no task.  It fails on demand, counts what is open, and stops the test when
 * something is closed that is still in use.
 */
#ifndef SKVCD_TESTS_LIB_IMPORT_DEVICE_H
#define SKVCD_TESTS_LIB_IMPORT_DEVICE_H

#include <stdatomic.h>
#include <stdint.h>

#include "gpu/device.h"

#define IMPORT_EXPORTS_MAX 4u
#define IMPORT_OPEN_MAX 2048u

struct device_memory {
	uint8_t *base; /* NULL: free entry */
	uint64_t bytes;
	int mapped; /* of a descriptor */
};

struct device_event {
	int open;
};

struct import_device {
	struct device device;
	struct device_facts facts;
	/* What the test "exports": the IPC handle's first byte is the index. */
	struct {
		uint8_t *base;
		uint64_t bytes;
	} exported[IMPORT_EXPORTS_MAX];
	int fail_memory, fail_region, fail_event; /* errno that the next calls return */
	int die;				  /* the next failure is fatal: dead() says -EIO */
	_Atomic int dead;
	void (*on_close)(void); /* called before an allocation is closed; or NULL */
	struct device_memory memories[IMPORT_OPEN_MAX];
	struct device_event events[IMPORT_OPEN_MAX];
	const struct device_region *regions[IMPORT_OPEN_MAX];
	unsigned memories_open, events_open, regions_open;
	uint8_t event_handle[DEVICE_HANDLE_BYTES]; /* the last one that was opened */
};

void import_device_init(struct import_device *d);
void import_device_deinit(struct import_device *d); /* fails the test when something is open */

#endif
