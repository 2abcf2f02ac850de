foreach(part store event_log console image_catalog overlay admission network)
  snow_test(${part}_test DEPS snow_vm_parts)
endforeach()
