#include "verbs.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

int verbs_load(struct verbs *verbs, char *error, size_t error_bytes)
{
    static const struct {
        const char *name;
        size_t at;
    } functions[] = {
#define ISW_X(name) {"ibv_" #name, offsetof(struct verbs, name)},
        VERBS_FUNCTIONS(ISW_X)
#undef ISW_X
    };
    void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL); /* for good: its drivers cannot be unloaded */
    if (!library) {
        snprintf(error, error_bytes, "libibverbs is not installed (Debian: libibverbs1 and ibverbs-providers)");
        return -ENOENT;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *found = dlsym(library, functions[i].name);
        if (!found) {
            snprintf(error, error_bytes, "libibverbs has no %s", functions[i].name);
            return -ENOENT;
        }
        memcpy((char *)verbs + functions[i].at, &found, sizeof found);
    }
    return 0;
}
