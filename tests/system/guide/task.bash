curl -X GET "http://localhost:8081/user/ai/tasks/TASK-20251026153045123-4567" \
-H "Authorization: Bearer YOUR_JWT_TOKEN"
