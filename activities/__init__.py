"""One file for each module of the platform; each exports ACTIVITIES. Activities do, workflows decide."""
