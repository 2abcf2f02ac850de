foreach(part store outbox event_log console image_catalog overlay admission network network_guard)
  snow_test(${part}_test DEPS snow_vm_parts)
endforeach()
# Requests name only the fields that matter to a test.
target_compile_options(image_catalog_test PRIVATE -Wno-missing-field-initializers)
