/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_facts.c - which GPU, and what is known about it.  Runs before there is a context; asks NVML, when
 * it is there, how full the card is, since only the difference over our own start says what we take.
 */
#include "gpu/cuda_internal.h"

#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#define UUID_TEXT_BYTES 41u /* "GPU-" and 36 characters */

static int numa_node_of(int ordinal)
{
	char bus[32] = "", path[80];
	FILE *f;
	int node = -1;

	if (cudaDeviceGetPCIBusId(bus, (int)sizeof(bus), ordinal) != cudaSuccess)
		return -1;
	for (char *c = bus; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	(void)snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/numa_node", bus);
	f = fopen(path, "re");
	if (!f)
		return -1;
	if (fscanf(f, "%d", &node) != 1)
		node = -1;
	(void)fclose(f);
	return node;
}

static void uuid_text(const uint8_t uuid[DEVICE_UUID_BYTES], char text[UUID_TEXT_BYTES])
{
	size_t at = (size_t)sprintf(text, "GPU-");

	for (unsigned i = 0; i < DEVICE_UUID_BYTES; i++)
		at += (size_t)sprintf(text + at, "%s%02x",
				      i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
}

/* Is it an ordinal?  "auto" is the first. */
static bool parse_ordinal(const char *which, int *ret_ordinal)
{
	char *end;
	long n;

	if (strcmp(which, "auto") == 0) {
		*ret_ordinal = 0;
		return true;
	}
	if (!isdigit((unsigned char)*which))
		return false;
	errno = 0;
	n = strtol(which, &end, 10);
	if (errno != 0 || *end || n > 1023)
		return false;
	*ret_ordinal = (int)n;
	return true;
}

static int facts_read(int ordinal, struct device_facts *ret_facts, char *err)
{
	struct cudaDeviceProp prop;
	int e = (int)cudaGetDeviceProperties(&prop, ordinal);

	if (e != 0)
		return gpu_say(err, gpu_errno(e), "cannot read the properties of GPU %d: %s",
			       ordinal, gpu_error_name(e));
	*ret_facts = (struct device_facts){
		.numa_node = numa_node_of(ordinal),
		.memory_bytes = prop.totalGlobalMem,
	};
	(void)snprintf(ret_facts->model, sizeof(ret_facts->model), "%.63s", prop.name);
	memcpy(ret_facts->uuid, prop.uuid.bytes, DEVICE_UUID_BYTES);
	return 0;
}

int cuda_facts_choose(const char *which, int *ret_ordinal, struct device_facts *ret_facts,
		      char *err)
{
	struct device_facts facts;
	char text[UUID_TEXT_BYTES];
	int count = 0, ordinal = -1, r, e = (int)cudaGetDeviceCount(&count);

	if (e != 0 || count == 0)
		return gpu_say(err, e == 0 || gpu_error_absent(e) ? -ENOENT : gpu_errno(e),
			       "no GPU can be used: %s", e ? gpu_error_name(e) : "none is there");
	if (parse_ordinal(which, &ordinal)) {
		if (ordinal >= count)
			return gpu_say(err, -ENODEV, "there is no GPU %d: %d can be seen", ordinal,
				       count);
		r = facts_read(ordinal, &facts, err);
		if (r < 0)
			return r;
		*ret_ordinal = ordinal;
		*ret_facts = facts;
		return 0;
	}
	if (strncmp(which, "GPU-", 4) != 0)
		return gpu_say(err, -EINVAL, "'%.60s' is not auto, a number or GPU-...", which);
	for (int i = 0; i < count; i++) {
		r = facts_read(i, &facts, err);
		if (r < 0)
			return r;
		uuid_text(facts.uuid, text);
		if (strcasecmp(text, which) != 0)
			continue;
		*ret_ordinal = i;
		*ret_facts = facts;
		return 0;
	}
	return gpu_say(err, -ENODEV, "none of %d GPUs is '%.60s'", count, which);
}

/* ---- NVML, without its header: four functions of a stable interface ---- */

struct nvml_memory { /* nvmlMemory_v2_t: what the driver keeps for itself does not count as used */
	unsigned int version;
	unsigned long long total, reserved, free, used;
};
#define NVML_MEMORY_V2 ((unsigned int)sizeof(struct nvml_memory) | 2u << 24)

uint64_t cuda_facts_used(const struct device_facts *facts)
{
	int (*init)(void), (*shutdown)(void), (*by_uuid)(const char *, void **),
		(*memory)(void *, struct nvml_memory *);
	struct nvml_memory m = { .version = NVML_MEMORY_V2 };
	char text[UUID_TEXT_BYTES];
	void *handle, *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return 0;
	*(void **)&init = dlsym(library, "nvmlInit_v2");
	*(void **)&shutdown = dlsym(library, "nvmlShutdown");
	*(void **)&by_uuid = dlsym(library, "nvmlDeviceGetHandleByUUID");
	*(void **)&memory = dlsym(library, "nvmlDeviceGetMemoryInfo_v2");
	uuid_text(facts->uuid, text);
	if (init && shutdown && by_uuid && memory && init() == 0) {
		if (by_uuid(text, &handle) != 0 || memory(handle, &m) != 0)
			m.used = 0;
		(void)shutdown();
	}
	(void)dlclose(library);
	return m.used;
}
